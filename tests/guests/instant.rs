//! Timeouts of Rust's library, reckoned by its monotonic clock, which never jumps.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_millis(150);
const JUMP: Duration = Duration::from_secs(60);

fn limit() -> u64 {
    let path = std::env::var_os("GUEST_LIMIT");
    let text = path.and_then(|path| std::fs::read_to_string(path).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX)
}

fn line(text: &str) {
    std::io::stdout().write_all(format!("{text}\n").as_bytes()).unwrap();
}

fn by_condition() {
    let (mutex, condition) = (Mutex::new(()), Condvar::new());
    let begin = Instant::now();
    let mut guard = mutex.lock().unwrap();
    while begin.elapsed() < WAIT {
        guard = condition.wait_timeout(guard, WAIT - begin.elapsed()).unwrap().0;
    }
}

fn by_channel() {
    let (_sender, receiver) = mpsc::channel::<()>();
    assert_eq!(receiver.recv_timeout(WAIT), Err(mpsc::RecvTimeoutError::Timeout));
}

fn by_parking() {
    let begin = Instant::now();
    while begin.elapsed() < WAIT {
        thread::park_timeout(WAIT.saturating_sub(begin.elapsed()));
    }
}

fn main() {
    std::panic::set_hook(Box::new(|panic| {
        line(&format!("FAILED {panic}"));
        std::process::exit(99);
    }));
    let steps = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(40);
    let stop = Arc::new(AtomicBool::new(false));
    let ways: [fn(); 4] = [by_condition, by_channel, by_parking, || thread::sleep(WAIT)];
    let threads = ways.map(|way| {
        let stop = stop.clone();
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                way();
                let took = begin.elapsed();
                assert!((WAIT..JUMP).contains(&took), "a wait took {took:?}");
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        (thread, count)
    });
    let mut last = Instant::now();
    for step in 1..=steps {
        thread::sleep(Duration::from_millis(5));
        while limit() < step {
            thread::sleep(Duration::from_millis(5));
        }
        let now = Instant::now();
        assert!(now.checked_duration_since(last).is_some_and(|passed| passed < JUMP));
        last = now;
        line(&format!("step {step}"));
    }
    stop.store(true, Ordering::Relaxed);
    for (thread, count) in threads {
        thread.join().unwrap();
        assert!(count.load(Ordering::Relaxed) > 0);
    }
    line("ok instant");
}

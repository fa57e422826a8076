// Timeouts of threads, reckoned by the monotonic clock, which never jumps.
import java.io.FileOutputStream;
import java.io.FileDescriptor;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;

public class Clocks {
    static final long WAIT = 100_000_000L, JUMP = 60_000_000_000L;
    static final FileOutputStream OUT = new FileOutputStream(FileDescriptor.out);

    interface Way {
        void run() throws Exception;
    }

    static void line(String text) throws Exception {
        OUT.write((text + "\n").getBytes());
    }

    static void check(String what, long took) throws Exception {
        if (took < 0 || took >= JUMP) {
            line("FAILED: " + what + " took " + took + " ns");
            Runtime.getRuntime().halt(99);
        }
    }

    static void again(String what, Way way) {
        Thread thread = new Thread(() -> {
            try {
                for (;;) {
                    long begin = System.nanoTime();
                    way.run();
                    check(what, System.nanoTime() - begin);
                }
            } catch (Exception error) {
                error.printStackTrace();
                Runtime.getRuntime().halt(98);
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    static long limit() {
        try {
            return Long.parseLong(Files.readString(Path.of(System.getenv("GUEST_LIMIT"))).trim());
        } catch (Exception error) {
            return Long.MAX_VALUE;
        }
    }

    public static void main(String[] arguments) throws Exception {
        long steps = arguments.length > 0 ? Long.parseLong(arguments[0]) : 40;
        CountDownLatch never = new CountDownLatch(1);
        Object monitor = new Object();
        again("park", () -> LockSupport.parkNanos(WAIT));
        again("sleep", () -> Thread.sleep(WAIT / 1_000_000));
        again("await", () -> never.await(WAIT, TimeUnit.NANOSECONDS));
        again("wait", () -> {
            synchronized (monitor) {
                monitor.wait(WAIT / 1_000_000);
            }
        });
        var pool = Executors.newScheduledThreadPool(1);
        long last = System.nanoTime();
        for (long step = 1; step <= steps; step++) {
            while (limit() < step)
                Thread.sleep(5);
            pool.schedule(() -> {}, 5, TimeUnit.MILLISECONDS).get(60, TimeUnit.SECONDS);
            long now = System.nanoTime();
            check("a step", now - last);
            last = now;
            line("step " + step);
        }
        line("ok clocks");
        Runtime.getRuntime().halt(0);
    }
}

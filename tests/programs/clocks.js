// Timers, and waits of threads, reckoned by the monotonic clock, which never jumps.
'use strict';
const fs = require('fs');
const { Worker, isMainThread } = require('worker_threads');

const WAIT = 50;
const JUMP = 60000;

function check(what, took) {
    if (!(took >= WAIT - 1 && took < JUMP)) {
        fs.writeSync(1, `FAILED: ${what} took ${took} ms\n`);
        process.exit(99);
    }
}

if (!isMainThread) {
    const word = new Int32Array(new SharedArrayBuffer(4));
    for (;;) {
        const begin = performance.now();
        Atomics.wait(word, 0, 0, WAIT);
        check('Atomics.wait', performance.now() - begin);
    }
}

function limit() {
    try {
        return Number(fs.readFileSync(process.env.GUEST_LIMIT, 'utf8'));
    } catch {
        return Infinity;
    }
}

const steps = Number(process.argv[2] ?? 40);
const worker = new Worker(__filename);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

(async () => {
    let last = process.hrtime.bigint();
    for (let step = 1; step <= steps; step++) {
        while (limit() < step) await pause(5);
        const begin = performance.now();
        await pause(WAIT);
        check('setTimeout', performance.now() - begin);
        const now = process.hrtime.bigint();
        check('a step', Number(now - last) / 1e6);
        last = now;
        fs.writeSync(1, `step ${step}\n`);
    }
    fs.writeSync(1, 'ok clocks\n');
    await worker.terminate();
})();

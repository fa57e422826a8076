// Answers lines over TCP, while timers fire, threads reckon, files are written, programs run and garbage is collected: serve.js PORT.
'use strict';
const {Worker, isMainThread, parentPort} = require('worker_threads');
const {execFile} = require('child_process');
const {createHash, randomBytes} = require('crypto');
const {gzip, gunzip} = require('zlib');
const fs = require('fs');
const net = require('net');

const sum = (from) => { let s = 0; for (let i = 0; i < 100000; i++) s = (s * 31 + i + from) | 0; return s; };

if (!isMainThread) {
    parentPort.on('message', (from) => parentPort.postMessage([from, sum(from)]));
} else {
    const done = {timers: 0, threads: 0, files: 0, packed: 0, programs: 0, garbage: 0};
    const fail = (what) => { console.error(`wrong: ${what}`); process.exit(3); };
    const check = (right, what) => right || fail(what);

    for (let first = 0; first < 3; first++) {
        const worker = new Worker(__filename);
        worker.on('message', ([from, found]) => {
            check(found === sum(from), 'a sum');
            done.threads++;
            setTimeout(() => worker.postMessage(from + 3), 5);
        });
        worker.on('error', (error) => fail(`a thread: ${error}`));
        worker.postMessage(first);
    }
    setInterval(() => done.timers++, 10);
    let kept = [];
    setInterval(() => {
        const number = done.garbage++;
        kept.push({number, bytes: Buffer.alloc(10000, number & 255), list: Array.from({length: 500}, (_, i) => [i, number])});
        for (const {number, bytes, list} of kept)
            check(bytes[9999] === (number & 255) && list[499][1] === number, 'an object');
        if (kept.length > 50)
            kept = kept.slice(25);
    }, 10);
    (function file() {
        const text = `written ${done.files}`;
        fs.writeFile('written', text, (error) => fs.readFile('written', 'utf8', (_, found) => {
            check(!error && found === text, 'a file');
            done.files++;
            setTimeout(file, 10);
        }));
    })();
    (function pack() {
        const data = randomBytes(30000);
        gzip(data, (_, packed) => gunzip(packed, (_, found) => {
            check(found.equals(data), 'what was packed');
            done.packed++;
            setTimeout(pack, 10);
        }));
    })();
    (function program() {
        execFile('echo', [`${done.programs}`], (error, found) => {
            check(!error && found === `${done.programs}\n`, `a program: ${error}`);
            done.programs++;
            setTimeout(program, 30);
        });
    })();

    net.createServer((socket) => {
        let rest = '';
        socket.setEncoding('latin1');
        socket.on('error', () => socket.destroy());
        socket.on('data', (data) => {
            const lines = (rest + data).split('\n');
            rest = lines.pop();
            for (const line of lines) {
                if (line === 'end')
                    process.exit(0);
                socket.write(line === 'state' ? `${Object.values(done).join(' ')}\r\n`
                    : `${createHash('sha256').update(line).digest('hex')}\r\n`);
            }
        });
    }).listen(Number(process.argv[2]), '127.0.0.1');
}

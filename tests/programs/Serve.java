// Answers lines over TCP, while timers fire, threads reckon, programs run and garbage is collected: Serve.java PORT.
import java.io.*;
import java.net.*;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.IntStream;

public class Serve {
    static final AtomicLong timers = new AtomicLong(), threads = new AtomicLong(), programs = new AtomicLong(), garbage = new AtomicLong();

    static void check(boolean right, String what) {
        if (!right) {
            System.err.println("wrong: " + what);
            Runtime.getRuntime().halt(3);
        }
    }

    interface Work { void step() throws Exception; }

    /** Does something again and again. */
    static void repeat(String what, AtomicLong count, int pauseMs, Work work) {
        Thread thread = new Thread(() -> {
            try {
                while (true) {
                    work.step();
                    count.incrementAndGet();
                    Thread.sleep(pauseMs);
                }
            } catch (Throwable error) {
                check(false, what + ": " + error);
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    static void answer(Socket socket) {
        try (socket) {
            BufferedReader lines = new BufferedReader(new InputStreamReader(socket.getInputStream(), StandardCharsets.ISO_8859_1));
            OutputStream out = socket.getOutputStream();
            for (String line; (line = lines.readLine()) != null; ) {
                if (line.equals("end"))
                    System.exit(0);
                String answer = timers + " " + threads + " " + programs + " " + garbage;
                if (!line.equals("state")) {
                    byte[] sum = MessageDigest.getInstance("SHA-256").digest(line.getBytes(StandardCharsets.ISO_8859_1));
                    answer = HexFormat.of().formatHex(sum);
                }
                out.write((answer + "\r\n").getBytes());
            }
        } catch (IOException gone) {
            // The client has.
        } catch (Exception error) {
            check(false, "an answer: " + error);
        }
    }

    public static void main(String[] args) throws Exception {
        Executors.newScheduledThreadPool(2, work -> {
            Thread thread = new Thread(work);
            thread.setDaemon(true);
            return thread;
        }).scheduleAtFixedRate(timers::incrementAndGet, 0, 10, TimeUnit.MILLISECONDS);
        repeat("a sum", threads, 2, () -> {
            long sum = IntStream.range(0, 20000).parallel().mapToLong(x -> (long) x * x).sum();
            check(sum == 2666466670000L, "the sum is " + sum);
        });
        Map<Integer, byte[]> kept = new HashMap<>();
        repeat("an object", garbage, 1, () -> {
            int number = garbage.intValue();
            byte[] old = kept.put(number % 200, new byte[100000]);
            check(old == null || old[5] == (byte) (number - 200), "an old object");
            kept.get(number % 200)[5] = (byte) number;
        });
        repeat("a program", programs, 50, () -> {
            Process process = new ProcessBuilder("echo", "" + programs).start();
            String found = new BufferedReader(new InputStreamReader(process.getInputStream())).readLine();
            check(process.waitFor() == 0 && found.equals("" + programs), "it says " + found);
        });
        ServerSocket listener = new ServerSocket(Integer.parseInt(args[0]), 50, InetAddress.getByName("127.0.0.1"));
        while (true) {
            Socket socket = listener.accept();
            new Thread(() -> answer(socket)).start();
        }
    }
}

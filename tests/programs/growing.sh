# A file grows, and tail follows it, told by inotify.
lines=$1
: > log
(
    for ((i = 1; i <= lines; i++)); do
        echo "line $i $((i * i * 7919 % 65537))" >> log
        sleep 0.01
    done
) &
tail -n +1 -f --pid=$! log

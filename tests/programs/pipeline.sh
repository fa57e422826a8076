# A pipeline of four programs, with a background job and a trap, in one shell; run by bash.
set -u
lines=${1:-300000}

background() {
    local i=0
    while [ "$i" -lt 300 ]; do
        i=$((i + 1))
        : $((sum = ${sum:-0} + i * i))
    done
    echo "background $sum" >"$2"
    return "$1"
}

trap 'echo "trap ran"' EXIT
background 9 background.out &
job=$!
sum=$(seq "$lines" | sort -r -S 100M --parallel=2 | gzip -6 | md5sum)
wait "$job"
echo "background job: $?"
cat background.out
again=$(seq "$lines" | awk '{ s += $1 } END { print s }' | tr -d '\n' | wc -c)
mapfile -t words < <(seq 1 1000 | sed 's/$/ word/' | tail -n 3)
echo "ok pipeline $sum $again ${words[*]}"

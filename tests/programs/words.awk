# A sieve and a table of words, in one associative array each.
BEGIN {
    limit = ENVIRON["AWK_LIMIT"] ? ENVIRON["AWK_LIMIT"] : 300000
    for (i = 2; i <= limit; i++) {
        if (i in composite)
            continue
        primes++
        last = i
        for (k = i * i; k <= limit; k += i)
            composite[k]
        if (primes % 2000 == 1)
            printf "step %d is %d\n", primes, i
        words[substr(i "", length(i "") - 1)] += i
    }
    for (word in words)
        sum = (sum + word * words[word]) % 1000000007
    printf "ok words %d %d %d\n", primes, last, sum
}

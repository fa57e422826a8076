# A tree goes through tar and gzip, is unpacked on the other side of a pipe, and is compared; run by bash.
set -eu
export LC_ALL=C GZIP=
rm -rf tree back
mkdir tree back
for i in $(seq 30); do
    mkdir -p "tree/$((i % 7))"
    seq "$i" "$((i * 4000))" >"tree/$((i % 7))/$i"
done
ln tree/1/1 tree/hard
ln -s 1/1 tree/soft
truncate -s 3M tree/holes
pack() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=go-w -S -cf - tree; }
echo "ok tar"
pack | gzip -9n | tee whole.tgz | gzip -d | tar -xf - -C back
diff -r tree back/tree
for level in 1 6 9; do
    pack | gzip "-${level}n" | gzip -d | md5sum
done
[ "$(stat -c %i back/tree/hard)" = "$(stat -c %i back/tree/1/1)" ]
md5sum <whole.tgz

# Commits, a branch that is merged, a clone over pipes, a fetch and a repack; run by bash. Names and dates are
# given, so that the ids of all commits are known to be right.
set -eu
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=c GIT_COMMITTER_EMAIL=c@d GIT_CONFIG_NOSYSTEM=1
rm -rf origin copy
git init -q -b main origin
cd origin
git config gc.auto 0
commit() {
    export GIT_AUTHOR_DATE="2020-01-01T00:00:$1Z" GIT_COMMITTER_DATE="2020-01-01T00:00:$1Z"
    git commit -q -m "$2"
    echo "commit $2 $(git rev-parse HEAD)"
}
for i in $(seq 10 40); do
    mkdir -p "dir$((i % 5))"
    seq "$i" 20000 >"dir$((i % 5))/file$i"
    git add .
    commit "$i" "number $i"
done
git checkout -q -b side HEAD~5
seq 5 >side
git add side
commit 41 side
git checkout -q main
git merge -q -m merged side
echo "merged $(git rev-parse HEAD)"
cd ..
git clone -q "file://$PWD/origin" copy
echo "cloned $(git -C copy rev-parse HEAD)"
cd origin
seq 7 >later
git add later
commit 42 later
cd ../copy
git fetch -q
git merge -q --ff-only origin/main
git repack -q -a -d -f
git fsck --strict --no-dangling
echo "ok git $(git rev-parse HEAD) $(git rev-list --all --objects | wc -l) $(git status --porcelain | wc -l)"

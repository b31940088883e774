# What the tests of kvtierctl share: a folder, copies of the binaries in $BUILD (default build/gcc), checks of what it prints. Sourced at the root of
# the tree; the last line of a test counts passed and failed.
B=${BUILD:-build/gcc}
for program in kvtierd kvtierctl; do
        if [ ! -x "$B/$program" ]; then
                echo "$B/$program is not built"
                echo "0 passed, 1 failed"
                exit 1
        fi
done
dir=$(mktemp -d /tmp/kvtier-ctl.XXXXXX)
# a build beside this test may replace them
mkdir "$dir/bin"
cp "$B/kvtierd" "$B/kvtierctl" "$dir/bin"
B=$dir/bin
sock=$dir/sock
passed=0
failed=0
skipped=0
daemon=
client=
holder=

cleanup()
{
        for pid in $client $holder $daemon; do
                kill "$pid" 2> /dev/null
        done
        wait 2> /dev/null
        rm -rf "$dir"
}
trap cleanup EXIT

ok()
{
        passed=$((passed + 1))
}
bad()
{
        echo "FAIL: $*"
        sed 's/^/    out: /' "$dir/out" 2> /dev/null | head -20
        sed 's/^/    err: /' "$dir/err" 2> /dev/null | head -20
        failed=$((failed + 1))
}

# ctl EXIT-CODE ARGUMENT...: runs kvtierctl; what it prints is in out and err
ctl()
{
        local want=$1
        shift
        what="kvtierctl $*"
        timeout 60 "$B/kvtierctl" --socket "$sock" "$@" > "$dir/out" 2> "$dir/err" < /dev/null
        local got=$?
        if [ $got = "$want" ]; then
                ok
        else
                bad "$what: exit $got, not $want"
        fi
        # silence on one side: errors never come on standard output, nor the other way round
        if [ "$want" = 0 ] && [ -s "$dir/err" ]; then
                bad "$what: succeeded, but says something on standard error"
        elif [ "$want" != 0 ] && ! [ -s "$dir/err" ]; then
                bad "$what: failed without saying why"
        fi
}
# has REGEX...: each is in what the last ctl printed; says: on standard error; lacks: is not there
has()
{
        for r in "$@"; do
                if grep -Eq -- "$r" "$dir/out"; then ok; else bad "$what: prints nothing like $r"; fi
        done
}
says()
{
        for r in "$@"; do
                if grep -Eq -- "$r" "$dir/err"; then ok; else bad "$what: says nothing like $r"; fi
        done
}
lacks()
{
        if grep -Eq -- "$1" "$dir/out"; then bad "$what: prints $1"; else ok; fi
}
# json PYTHON...: the last output is one line with a JSON value v, of which each expression is true, and whose fields are in the page
json()
{
        if [ "$(wc -l < "$dir/out")" = 1 ]; then ok; else bad "$what: JSON is not one line"; fi
        if python3 - "$dir/out" "$@" << 'PYTHON'; then ok; else bad "$what: JSON is not as expected"; fi
import json, re, sys
v = json.load(open(sys.argv[1]))
for e in sys.argv[2:]:
    if not eval(e):
        sys.exit(print(f"    not so: {e}") or 1)
page = open("man/kvtierctl.1").read()
words = set(re.findall(r"[a-z0-9_]+", page))
def walk(x):
    for k, y in (x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()):
        if isinstance(k, str) and k not in words:
            sys.exit(print(f"    field {k} is not in kvtierctl(1)") or 1)
        walk(y)
walk(v)
PYTHON
}
wait_for()
{
        for _ in $(seq 200); do
                if "$@" > /dev/null 2>&1; then return 0; fi
                sleep 0.05
        done
        return 1
}

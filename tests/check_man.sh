#!/bin/sh
# The man pages say what the code does, as far as a program can tell: every page is clean for mandoc, pages refer to pages that are
# there, generated sections are up to date, and what stands in a table of the code stands in the page about it.
set -eu
export LC_ALL=C
cd "$(dirname "$0")/.."
passed=0
failed=0
scratch=$(mktemp)
trap 'rm -f "$scratch"' EXIT

ok() {
	passed=$((passed + 1))
}
bad() {
	echo "$*"
	failed=$((failed + 1))
}

# each page: lint, but for pages of other packages that are not installed here
for page in man/*.[1-8]; do
	mandoc -T lint "$page" 2>&1 | grep -Ev 'referenced manual not found|outdated mandoc.db' > "$scratch" || true
	if [ -s "$scratch" ]; then
		cat "$scratch"
		bad "$page is not clean"
	else
		ok
	fi
	# "Xr name section" of mdoc; every kvt* page must be in man/
	# shellcheck disable=SC2013
	for name in $(sed -n 's/^\.Xr \(kvt[^ ]*\) \([1-8]\).*/\1.\2/p' "$page" | sort -u); do
		if [ -e "man/$name" ]; then
			ok
		else
			bad "$page refers to $name, which is not in man/"
		fi
	done
done

if tests/gen_man.sh --check; then
	ok
else
	bad "a generated section is old"
fi

# names PAGES PATTERN NAME...: PATTERN, with @ for the name, must match a line of one of the pages (a glob)
names() {
	pages=$1
	pattern=$2
	shift 2
	if [ $# = 0 ]; then
		bad "nothing to look for in $pages: is the table there?"
	fi
	for name in "$@"; do
		# shellcheck disable=SC2086
		if grep -qs -- "$(printf %s "$pattern" | sed "s/@/$name/g")" $pages; then
			ok
		else
			bad "$pages does not say anything of $name"
		fi
	done
}

table=libclient/ctl/commands.def
# shellcheck disable=SC2046
{
	names man/kvtierctl.1 '^\.Ss @\( \|$\)' $(sed -n 's/^COMMAND(\([a-z]*\),.*/\1/p' $table)
	names man/kvtierctl.1 'Fl Fl @\( \|$\)' $(sed -n 's/^OPTION([a-z]*, \([a-z]*\),.*/\1/p' $table | sort -u)
	names man/kvtierd.conf.5 '^\.It Ic @ ' $(sed -n 's/^PARAM([A-Z]*, \([a-z_0-9]*\),.*/\1/p' daemon/params.def)
	names man/kvtierctl.1 '^\.It Va @$' $(sed -n 's/^METRIC(\([a-z_0-9]*\),.*/\1/p' daemon/metrics.def)
	names man/kvtier.3 '\<@\>' $(sed -n 's/^ERROR([0-9]*, \([A-Z_]*\),.*/KVT_E_\1/p' proto/errors.def)
	names 'man/*.3' '\<@\>' $(sed -n 's/^KVT_PUBLIC.*[ *]\(kvt_[a-z_]*\)(.*/\1/p' libclient/include/kvtier.h.in | grep -v '_async$')
}

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]

#!/bin/sh
# The sections of man pages that are made from tables: the parameters (daemon/params.def, in kvtierd.conf(5)) and the counters
# (daemon/metrics.def, in kvtierctl(1)). They stand in the pages between marks, so that building needs no generator.
#
#   tests/gen_man.sh            print them
#   tests/gen_man.sh --update   put them into the pages
#   tests/gen_man.sh --check    exit 1, with the difference, if the pages do not say what the tables say
set -eu
export LC_ALL=C
cd "$(dirname "$0")/.."

# 16ull << 20 -> 16777216
number() {
	expression=$(printf %s "$1" | sed 's/ull//g')
	case $expression in
	*[!0-9\ \<\>*+-]* | '')
		echo "gen_man: cannot read the number '$1'" >&2
		exit 1
		;;
	esac
	# shellcheck disable=SC2004
	echo $(($expression))
}

as_bytes() {
	n=$1
	unit=
	for next in K M G T; do
		if [ "$n" -ge 1024 ] && [ $((n % 1024)) = 0 ]; then
			n=$((n / 1024))
			unit=$next
		else
			break
		fi
	done
	echo "$n$unit"
}

as_time() {
	if [ "$1" = 0 ]; then
		echo 0
	elif [ $(($1 % 3600000000)) = 0 ]; then
		echo "$(($1 / 3600000000))h"
	elif [ $(($1 % 60000000)) = 0 ]; then
		echo "$(($1 / 60000000))min"
	elif [ $(($1 % 1000000)) = 0 ]; then
		echo "$(($1 / 1000000))s"
	elif [ $(($1 % 1000)) = 0 ]; then
		echo "$(($1 / 1000))ms"
	else
		echo "$1us"
	fi
}

# roff's own characters, and one sentence a line
prose() {
	# shellcheck disable=SC2016
	printf '%s\n' "$1" | sed -e 's/\\/\\e/g' -e 's/`\([^`]*\)`/\\(oq\1\\(cq/g' -e "s/^\([.']\)/\\\\\&\1/" -e 's/\. \([A-Z0-9\\]\)/.\n\1/g' |
		fold -s -w 76 | sed 's/ *$//'
}

# The entries of a table, one a line; strings that C joins are one here, too.
entries() {
	awk -v name="$1" 'index($0, name "(") == 1 { entry = 1; text = "" }
		entry { sub(/^[ \t]+/, text == "" ? "" : " "); text = text $0 }
		entry && /\)[ \t]*$/ { gsub(/" "/, "", text); print text; entry = 0 }' "$2"
}

print_params() {
	# seven arguments divided by |
	entries PARAM daemon/params.def |
		sed -n 's/^PARAM(\([A-Z]*\), \([a-z_0-9]*\), "\([^"]*\)", \([^,]*\), \([^,]*\), \([01]\), "\(.*\)")$/\1|\2|\3|\4|\5|\6|\7/p' |
		while IFS='|' read -r type name default min max reload text; do
			min=$(number "$min")
			max=$(number "$max")
			case $type in
			BYTES)
				metavar=bytes
				range="from $(as_bytes "$min") to $(as_bytes "$max")"
				;;
			USEC)
				metavar='time'
				range="from $(as_time "$min") to $(as_time "$max")"
				;;
			COUNT)
				metavar=number
				range="from $min to $max"
				;;
			PCT)
				metavar=percent
				range="from $min to $max"
				;;
			BOOL)
				metavar="yes | no"
				range=
				;;
			STRING)
				metavar=text
				range="from $min to $max characters"
				[ "$min" != 0 ] || range="at most $max characters"
				;;
			*)
				echo "gen_man: unknown type $type" >&2
				exit 1
				;;
			esac
			echo ".It Ic $name No = Ar $metavar"
			prose "$text"
			line=
			[ -z "$default" ] || line="Default $default"
			[ -z "$range" ] || line="$line${line:+, }$range"
			[ "$reload" = 1 ] || line="$line${line:+; }needs a restart"
			first=$(printf %.1s "$line" | tr '[:lower:]' '[:upper:]')
			[ -z "$line" ] || printf '%s.\n' "$first${line#?}"
		done
}

print_metrics() {
	entries METRIC daemon/metrics.def | sed -n 's/^METRIC(\([a-z_0-9]*\), "\(.*\)")$/\1|\2/p' | while IFS='|' read -r name text; do
		echo ".It Va $name"
		prose "$text"
	done
}

# section TABLE-ENTRY print-function: the text, or an error if an entry could not be read
section() {
	text=$($2)
	n=$(grep -c "^$1(" "$3")
	if [ "$(printf '%s\n' "$text" | grep -c '^\.It ')" != "$n" ]; then
		echo "gen_man: not all $n entries of $3 could be read" >&2
		exit 1
	fi
	printf '%s\n' "$text"
}
params() {
	section PARAM print_params daemon/params.def
}
metrics() {
	section METRIC print_metrics daemon/metrics.def
}

# page MARK generator: the page with the section replaced
updated() {
	text=$($3)
	if ! grep -q "^\.\\\\\" BEGIN $2" "$1" || ! grep -q "^\.\\\\\" END $2" "$1"; then
		echo "gen_man: $1 lacks the marks BEGIN $2 and END $2" >&2
		exit 1
	fi
	sed -n "1,/^\.\\\\\" BEGIN $2/p" "$1"
	printf '%s\n' "$text"
	sed -n "/^\.\\\\\" END $2/,\$p" "$1"
}

# page MARK generator
update() {
	updated "$@" > "$1.new"
	mv "$1.new" "$1"
}
check() {
	updated "$@" > "$scratch"
	diff -u "$1" "$scratch" || {
		echo "$1 is behind its table: run tests/gen_man.sh --update"
		exit 1
	}
}
each_page() {
	"$1" man/kvtierd.conf.5 PARAMS params
	"$1" man/kvtierctl.1 METRICS metrics
}

scratch=$(mktemp)
trap 'rm -f "$scratch"' EXIT
case ${1-} in
--update)
	each_page update
	;;
--check)
	each_page check
	;;
'')
	params
	metrics
	;;
*)
	echo "usage: tests/gen_man.sh [--update | --check]" >&2
	exit 2
	;;
esac

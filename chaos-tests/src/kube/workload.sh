# An application: works in its own directory of the volume, verifies everything, and ends with the first error.
# ME: its name. PEER: another's, or empty. /state: a directory of the node that the volume knows nothing of.
set -u
export LC_ALL=C
S=/state D=/data/$ME E=/state/err PAD=abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz
n=0 ops=0 max=0 maxop=none synced=0 locks=0 shown=-1 total=0
counters() { echo "$1 n=$n ops=$ops locks=$locks synced=$synced max=$max op=$maxop"; }
op() { # op NAME COMMAND ...
  local name=$1 a=$EPOCHREALTIME b d rc=0; shift; ops=$((ops + 1))
  "$@" 2>$E || rc=$?
  b=$EPOCHREALTIME; d=$((${b/./} - ${a/./}))
  if ((d > max)); then max=$d maxop=$name; fi
  ((rc == 0)) && return
  echo "ERROR $name n=$n after ${d}us: $(tr '\n' ' ' <$E)" | tee $S/error; counters END; exit 1
}
line() { printf '%d %s\n' "$n" $PAD; }
append() { line >>"$1"; }
keep_open() { exec 3>>"$D/held.$gen"; }
hold() { line >&3; }
create() { local rc=0; set -C; line >"$D/new.$n" || rc=1; set +C; return $rc; }
rename() { mv "$D/new.$n" "$D/moved.$n"; }
check() { local got; read -r got <"$D/moved.$n" && [ "$got" = "$n $PAD" ] || { echo "moved.$n holds '${got-}'" >&2; return 1; }; }
remove() { rm "$D/moved.$n" && [ ! -e "$D/moved.$n" ]; }
hash() { sha256sum | cut -c1-64; }
whole() { # whole FILE LINES: these lines and nothing else
  local want have
  want=$(seq -f "%.0f $PAD" 1 "$2" | hash) && have=$(cat "$1" | hash) && [ "$want" = "$have" ] && return
  echo "$1: not the $2 lines that were written but $(wc -l <"$1")" >&2; return 1
}
head_of() { # head_of FILE LINES: at least these, whole and in order
  local want have
  want=$(seq -f "%.0f $PAD" 1 "$2" | hash) && have=$(head -n "$2" "$1" | hash) && [ "$want" = "$have" ] && return
  echo "$1: synced $2 lines, has $(wc -l <"$1")" >&2; return 1
}
flush() { sync "$D/log.$gen" && synced=$n && echo "$n" >$S/synced.$gen.new && mv $S/synced.$gen.new $S/synced.$gen; }
publish() { line >"/data/pub.$ME.new" && sync "/data/pub.$ME.new" && mv "/data/pub.$ME.new" "/data/pub.$ME"; }
peer() { # what the other one published is whole, whenever one looks
  local got; [ -e "/data/pub.$PEER" ] || return 0
  read -r got <"/data/pub.$PEER" && [ "${got#* }" = "$PAD" ] || { echo "pub.$PEER holds '${got-}'" >&2; return 1; }
}
exclusive() { # of all pods one at a time creates the file
  local rc=0 got; set -C; echo "$ME" 2>/dev/null >/data/exclusive || rc=1; set +C
  ((rc == 0)) || return 0
  read -r got </data/exclusive; [ "${got-}" = "$ME" ] || { echo "exclusive holds '${got-}'" >&2; return 1; }
  locks=$((locks + 1)); rm /data/exclusive
}
trap 'counters END; exit 0' TERM
if [ -e $S/error ]; then echo "BEFORE $(cat $S/error)"; rm $S/error; fi
op mkdir mkdir -p "$D"
gen=0
while [ -e $S/synced.$gen ]; do
  read -r old <$S/synced.$gen
  op synced-data head_of "$D/log.$gen" "$old"; total=$((total + old)); gen=$((gen + 1))
done
echo 0 >$S/synced.$gen
if [ -e /data/exclusive ] && [ "$(cat /data/exclusive)" != "${PEER:-}" ]; then rm -f /data/exclusive; fi
op open keep_open
rm -f "$D/log.$gen" "$D"/new.* "$D"/moved.*
exec 9<> <(:)
echo "BEGIN gen=$gen verified=$total"
while :; do
  n=$((n + 1))
  op append append "$D/log.$gen"
  op held-fd hold
  op create create
  op rename rename
  op read check
  op remove remove
  if ((n % 5 == 0)); then op fsync flush; op exclusive exclusive; fi
  if ((n % 10 == 0)); then op publish publish; [ -z "$PEER" ] || op peer peer; fi
  if ((n % 25 == 0)); then op verify whole "$D/log.$gen" $n; op verify-held whole "$D/held.$gen" $n; fi
  if ((SECONDS != shown)); then shown=$SECONDS; counters LOOP; max=0 maxop=none; fi
  read -r -t 0.03 -u 9 || :
done

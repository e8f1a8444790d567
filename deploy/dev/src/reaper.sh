# Ends the processes of a run and removes its folder when the parent process ends or is killed.
#
# $1 is the folder, which this script creates; $2 is the umask. Only the parent holds the other end of the pipe on
# stdin. The shell has its own process group, so that signals to the parent's group do not end it.

trap '' INT TERM HUP QUIT PIPE
cd / || exit 1
dir=$1
umask "$2"
mkdir "$dir" "$dir/pids" || exit 1
echo ready
exec >/dev/null

while read -r _; do :; done

nap() { sleep 0.02 2>/dev/null || sleep 1; }

# A zombie is not running, even if no parent reaps it, as in a container.
runs() {
    kill -0 "$1" 2>/dev/null || return 1
    case $(cat "/proc/$1/stat" 2>/dev/null) in *') Z '*) return 1 ;; esac
}

# After this move, a child that has not recorded its process id yet fails to start.
mv "$dir/pids" "$dir/ending"

pids=''
for file in "$dir"/ending/*; do
    [ -f "$file" ] || continue
    tries=0
    until pid=$(cat "$file") && [ -n "$pid" ] || [ $tries -ge 25 ]; do
        nap
        tries=$((tries + 1))
    done
    case $pid in '' | *[!0-9]*) continue ;; esac
    pids="$pids $pid"
    case $file in
        # Postgres: SIGQUIT frees its System V shared memory, SIGKILL does not. A frozen Postgres and
        # its backends must be continued to receive the signal.
        *.quit)
            children=$(cat "/proc/$pid/task/$pid/children")
            kill -QUIT "$pid"
            for each in $pid $children; do kill -CONT "$each"; done
            ;;
        *) kill -KILL -- "-$pid" || kill -KILL "$pid" ;;
    esac 2>/dev/null
done

# Postgres waits up to 5 s for its backends. SIGKILL follows after about 7 s.
tries=0
for pid in $pids; do
    while runs "$pid"; do
        [ $tries -ne 350 ] || for late in $pids; do kill -KILL "$late"; done 2>/dev/null
        [ $tries -lt 450 ] || break
        nap
        tries=$((tries + 1))
    done
done

# A killed Postgres leaves its shared memory segment, whose id is on line 7 of this file.
for file in "$dir"/*/data/postmaster.pid; do
    [ -f "$file" ] || continue
    segment=$(sed -n '7s/^ *[0-9][0-9]* *\([0-9][0-9]*\) *$/\1/p' "$file")
    [ -z "$segment" ] || ipcrm -m "$segment" 2>/dev/null
done

tries=0
while [ -e "$dir" ] && [ $tries -lt 500 ]; do
    rm -rf "$dir" 2>/dev/null || nap
    tries=$((tries + 1))
done

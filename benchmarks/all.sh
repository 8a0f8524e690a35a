#!/usr/bin/env bash
# All benchmarks of speed, one after the other, on a machine that does nothing else. Tables and figures go to a folder.
#
#     bash benchmarks/all.sh OUT            about two hours on two cores
#     bash benchmarks/all.sh OUT --quick    some minutes: to see that everything runs
#
# PYTHON (python3) is an environment with equipes in it. Before the first run, in the same environment:
#     python benchmarks/peers/create.py nequip sevenn mace symmetrix
# EQUIPES_PEERS names the folder of these environments, if it is not the usual one.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: bash benchmarks/all.sh OUT [--quick]" >&2; exit 2; }
out=$1
shift
here=$(dirname "$0")
python=${PYTHON:-python3}
environments=${EQUIPES_PEERS:+--environments $EQUIPES_PEERS}
mkdir -p "$out"
# A second busy process makes waiting threads and caches tell nothing.
load=$(cut -d' ' -f1 /proc/loadavg 2>/dev/null || echo 0)
awk -v load="$load" 'BEGIN { exit !(load > 0.3) }' &&
    echo "Note: the load average is $load; figures are worth little unless the machine is quiet." >&2

# Tables that are in the folder already stay: a run that was interrupted goes on where it was.
run() {
    local name=$1
    shift
    [ -s "$out/$name.md" ] && { echo "$name.md is there already"; return; }
    echo "== $name"
    OMP_NUM_THREADS=1 "$python" "$here/$@" --json "$out/$name.json" --overwrite | tee "$out/$name.tmp"
    mv "$out/$name.tmp" "$out/$name.md"
}

# shellcheck disable=SC2086
{
    run roofline roofline.py --plot "$out/roofline.png" "$@"
    run training_step training_step.py $environments "$@"
    run inference inference.py $environments "$@"
    run inference_mace inference.py --model mace $environments "$@"
    case " $* " in *" --quick "*) ;; *) run large inference.py --peers --atoms 20000 --rounds 2 "$@" ;; esac
    run scaling scaling.py --plot "$out/scaling.png" "$@"
}

#!/usr/bin/env bash
# From 50 frames of published data to molecular dynamics, by the commands a user would type. Called by `make demo`.
#
#   bash examples/demo.sh [DIRECTORY]        needs `equipes` on the PATH; writes into DIRECTORY (demo)
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-demo}
data=examples/ethanol
units=kcal/mol,Ang
# A molecule of nine atoms is too small to be shared between threads.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() {
    printf '\033[36m$ %s\033[0m\n' "$*"
    "$@"
}

start=$SECONDS
mkdir -p "$out"

title "1. The data: 70 frames of ethanol, PBE/def2-SVP, from rMD17, as published"
run equipes data check $data/ethanol_train.npz --test $data/ethanol_test.npz --units $units

title "2. Train on 50 of them, and choose the model by the other 20"
cat $data/demo.yaml
run equipes train $data/demo.yaml --out "$out/run" --overwrite

title "3. Relax a molecule"
run equipes data convert $data/ethanol_test.npz "$out/ethanol_test.xyz" --units $units --overwrite
run equipes relax "$out/run/model.safetensors" "$out/ethanol_test.xyz" --out "$out/relaxed.xyz" \
    --optimizer bfgs --overwrite

title "4. Molecular dynamics at constant energy, 2 ps; of 600 K at the minimum about half stays in the motion"
run equipes md "$out/run/model.safetensors" "$out/relaxed.xyz" --ensemble nve --temperature 600 --steps 4000 \
    --timestep 0.5 --seed 1 --out "$out/md" --overwrite

title "5. How good is it? 200 frames that it has not seen, beside the error of knowing only the mean energy and no forces"
run equipes evaluate "$out/run/model.safetensors" $data/ethanol_test.npz --units $units \
    --report "$out/report.html" --json "$out/errors.json" --md "$out/md" --overwrite

title "6. Without any training: silicon by a published universal potential, which is fetched once"
if run equipes models get 7net-0; then
    run equipes relax 7net-0 examples/silicon.vasp --out "$out/silicon.xyz" --overwrite
else
    echo "It could not be fetched; with a network, \`equipes models get 7net-0\` does it."
fi

title "Done in $((SECONDS - start)) s. What there is now:"
cat <<END
  $out/report.html            the report; open it in a browser
  $out/run/model.safetensors  the potential: equipes.Calculator("$out/run/model.safetensors")
  $out/run/config.yaml        what was run, with every default
  $out/run/metrics.csv        the learning curves
  $out/errors.json            the errors, for a program
  $out/relaxed.xyz            the relaxed molecule
  $out/silicon.xyz            the relaxed crystal, where the universal potential was fetched
  $out/md/                    trajectory, energies and temperatures, plot
END

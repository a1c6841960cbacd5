#!/usr/bin/env bash
# Make all embedded models from seeds:  experiments/embedded/make_models.sh [DEVICE] [BUILD FOLDER]
# Started again after an interruption, it continues where it stopped. Sizes are variables, for a smaller try.
set -euo pipefail
cd "$(dirname "$0")/../.."
device=${1:-cpu} build=${2:-build}
python=${PYTHON:-python} workers=${WORKERS:-2} out=${OUT:-src/customized_grpo/embedded/models}
pairs=${PAIRS:-100000} world=${WORLD:-16000}
vae_steps=${VAE_STEPS:-6000} policy_steps=${POLICY_STEPS:-12000} policy_batch=${POLICY_BATCH:-256}
[ "$device" = cpu ] && micro=16 || micro=$policy_batch # small batches fit into a CPU's cache
export PYTHONPATH=src
here=experiments/embedded

render() {
  [ -e "$build/$1/done" ] || "$python" $here/render.py --out "$build/$1" --workers "$workers" "${@:2}"
  touch "$build/$1/done"
}
render pairs --pairs "$pairs" --combinations known --imperfect --seed 4
"$python" $here/train_vae.py --data "$build/pairs" --out "$build/vae" --device "$device" --steps "$vae_steps"
"$python" $here/train_policy.py --data "$build/pairs" --vae "$build/vae" --out "$build/policy" --device "$device" \
  --steps "$policy_steps" --batch "$policy_batch" --micro-batch "$micro"
"$python" $here/assemble.py --policy "$build/policy/pipeline" --vae "$build/vae" --out "$out/pipeline"
if [ -z "${WITHOUT_ENCODERS:-}" ]; then # rewards see other images than monitors
  render world --pairs "$world" --seed 2
  render world2 --pairs "$world" --seed 3
  for name in reward-identity reward-prompt; do
    "$python" $here/train_encoders.py $name --data "$build/world" --out "$out" --device "$device"
  done
  for name in monitor-identity monitor-prompt; do
    "$python" $here/train_encoders.py $name --data "$build/world2" --out "$out" --device "$device"
  done
fi
"$python" $here/measure.py encoders --seed 11 | tee "$build/encoders.json"
"$python" $here/measure.py vae --policy "$out/pipeline" --grid "$build/vae.png" | tee "$build/vae.json"
"$python" $here/measure.py policy --policy "$out/pipeline" --grid "$build/policy.png" | tee "$build/policy.json"

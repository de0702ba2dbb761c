#!/usr/bin/env bash
# Plans for the GPUs of one host, measured beside what is predicted: a small DeepSeek-V3-like model (examples/eight-gpus) over pipeline ranks and
# experts' ranks, under published schedules and `auto`. For each layout the job's ops are timed first (`tune`), plans are compiled with that
# profile, checked against the host on a narrower model, and timed (`fidelity`). A table goes to standard output, everything else to OUT.
#
#     eight_gpus.sh [-g GPUS] [-b DUALWEAVE] [-o OUT] [-s STEPS] [-- OVERRIDES...]
#
# -g  GPUs that the plans are for: 8 (default) or 4. Where there are fewer, ranks share them, and times mean nothing: to try the script.
# -b  the program, of a release build. -s  steps that are timed (5). OVERRIDES go to the job, say `-- --sequence 512`.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
gpus=8 dualweave=$root/target/release/dualweave out= steps=5
while getopts g:b:o:s: option; do
  case $option in
    g) gpus=$OPTARG ;;
    b) dualweave=$OPTARG ;;
    o) out=$OPTARG ;;
    s) steps=$OPTARG ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
shift $((OPTIND - 1))
case $gpus in # pipeline ranks, ranks that share the experts
  8) layouts=("4 2" "2 4" "8 1") ;;
  4) layouts=("2 2" "4 1") ;;
  *) echo "plans are for 8 or 4 GPUs, not $gpus" >&2; exit 2 ;;
esac
out=${out:-$(mktemp -d)}
mkdir -p "$out" || exit 2
job=$root/examples/eight-gpus
export CUDA_DEVICE_MAX_CONNECTIONS=32
"$dualweave" doctor >"$out/doctor.txt" 2>&1 || { cat "$out/doctor.txt" >&2; exit 2; }
echo "everything that is measured: $out" >&2

# What fails is told in the table; the others go on.
attempt() { # NAME COMMAND...: its output to NAME.json, what it says to NAME.txt
  local name=$out/$1
  shift
  timeout 300 "$@" >"$name.json" 2>"$name.txt" || { echo "exit code $?: $*" >>"$name.txt"; return 1; }
}
for layout in "${layouts[@]}"; do
  read -r pp ep <<<"$layout"
  shape=(--pp "$pp" --dp "$ep" --ep "$ep")
  name=pp$pp-ep$ep
  echo "PP $pp, EP $ep" >&2
  attempt "$name-tune" "$dualweave" tune "$job/job.ron" "${shape[@]}" "$@" -o "$out/$name-profile.ron"
  for schedule in 1f1b zb-v dualpipe dualpipev auto; do
    plan=$name-$schedule
    attempt "$plan-narrow" "$dualweave" compile "$job/check.ron" "${shape[@]}" --schedule "$schedule" -o "$out/$plan-narrow.ron" &&
      attempt "$plan-check" "$dualweave" run "$out/$plan-narrow.ron" --backend cuda --steps 3 --check --json
    attempt "$plan-compile" "$dualweave" compile "$job/job.ron" "${shape[@]}" --schedule "$schedule" --profile "$out/$name-profile.ron" "$@" \
      -o "$out/$plan.ron" && attempt "$plan" "$dualweave" fidelity "$out/$plan.ron" --steps "$steps" --json --trace "$out/$plan-trace.json"
  done
done

python3 - "$out" "${layouts[@]}" <<'PYTHON'
import json, statistics, sys
from pathlib import Path

out, layouts = Path(sys.argv[1]), sys.argv[2:]


def read(name):
    try:
        return json.loads((out / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None


def failure(*names):
    texts = [path.read_text().strip().splitlines() for name in names if (path := out / f"{name}.txt").exists()]
    lines = [line.strip() for text in texts for line in text if line.strip()]
    said = [line for start in ["×", "exit code"] for line in lines if line.startswith(start)]
    return said[0] if said else "not run"


print((out / "doctor.txt").read_text())
print("| PP | EP | schedule | step, measured | predicted | off | computing | exposed | idle | predicted | fullest rank | predicted | loss off by |")
print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
off, shared, slower = [], False, []
for layout in layouts:
    pp, ep = layout.split()
    times = {}
    for schedule in ["1f1b", "zb-v", "dualpipe", "dualpipev", "auto"]:
        name = f"pp{pp}-ep{ep}-{schedule}"
        told, check = read(name), read(f"{name}-check")
        if told is None:
            print(f"| {pp} | {ep} | {schedule} | {failure(name, f'{name}-compile')} | | | | | | | | | |")
            continue
        shared |= told["ranks_share_gpus"]
        step, was = told["step"], told["measured"]
        measured, predicted = step["measured_ns"] / 1e6, step["predicted_ns"] / 1e6
        times[schedule] = measured
        off.append(abs(predicted / measured - 1))
        shares = " | ".join(f"{100 * was[part]:.1f} %" for part in ["busy", "exposed", "bubble"])
        then = ", ".join(f"{100 * told['predicted'][part]:.1f}" for part in ["busy", "exposed", "bubble"])
        loss = failure(f"{name}-check", f"{name}-narrow")
        if check:
            pairs = [pair for taken in check["steps"] for pair in zip(taken["losses"], taken["host"]["losses"])]
            loss = f"{max(abs(here / host - 1) for here, host in pairs):.1e}"
            loss += "" if check["same_as_reference"] else ", refused"
        memory = " | ".join(f"{told[key] / 1e9:.1f} GB" for key in ["taken_bytes", "predicted_bytes"])
        print(f"| {pp} | {ep} | {schedule} | {measured:.1f} ms | {predicted:.1f} ms | {100 * (predicted / measured - 1):+.1f} % | {shares} | {then} | {memory} | {loss} |")
    if "auto" in times and times["auto"] > min(times.values()):
        slower.append(f"PP {pp}, EP {ep}: {min(times, key=times.get)} by {100 * (times['auto'] / min(times.values()) - 1):.1f} %")
print()
if off:
    print(f"Predicted steps are {100 * statistics.median(off):.1f} % off in the median, {100 * max(off):.1f} % at most.")
print("Faster than auto: " + ("; ".join(slower) or "none") + ".")
if shared:
    print("Ranks shared GPUs: times, shares and what is off mean nothing.")
PYTHON

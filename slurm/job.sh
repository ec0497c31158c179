# What the job scripts beside this file share; each of them sources it. Runs in the batch shell, on the job's first node.
# Nothing here is meant to be edited: what differs from site to site stands in slurm/site.sh, see site.sh.example.

# begin CONFIG [KEY=VALUE ...]: go to the checkout, set up the environment, write the log to the run's folder.
begin() {
    cd "$SLURM_SUBMIT_DIR" || exit 2
    JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    JOB=${JOB:-$SLURM_JOB_ID}
    hear_between_steps
    unset VIRTUAL_ENV
    if [ -f slurm/site.sh ]; then source slurm/site.sh; fi
    # An environment that site.sh activated goes first.
    if [ -d .venv ] && [ -z "${VIRTUAL_ENV:-}" ]; then PATH=$PWD/.venv/bin:$PATH; fi
    if ! command -v sonoshard >/dev/null; then
        echo "sonoshard is not installed in $PWD/.venv: run 'make .venv/.installed' there on a login node," \
            "or activate its environment in slurm/site.sh" >&2
        exit 2
    fi
    # A job that is queued again goes on in its own run, whatever was edited since.
    local known=slurm/.jobs/$JOB
    if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -f "$known" ]; then
        RUN=$(<"$known")
    else
        RUN=$(python -m launch.job_config folder "$@") || exit 2
        { mkdir -p slurm/.jobs && echo "$RUN" >"$known"; } 2>/dev/null || true  # not in a checkout of somebody else
    fi
    mkdir -p "$RUN/jobs/$SLURM_JOB_ID" || exit 2
    echo "$SLURM_JOB_NAME" >"$RUN/jobs/$SLURM_JOB_ID/name"
    echo "the log is $RUN/slurm-$JOB.log"
    exec >>"$RUN/slurm-$JOB.log" 2>&1
    echo "== $(date '+%F %T') job $JOB on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1))"

    # The code as it was submitted, and all that follows with it; what came before this line, the checkout's own, only
    # found it. Commands keep the checkout as their folder, but import nothing from there.
    CODE=$(python -m launch.snapshot "$RUN" "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}") || exit 1
    source "$CODE/slurm/job.sh"
    set_up "$@"
}

# set_up CONFIG [KEY=VALUE ...]: what all commands of the job need.
set_up() {
    export PYTHONPATH=$CODE PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
    CONFIG=$1
    OVERRIDES=("${@:2}")
    if [ -f "$CODE/$CONFIG" ]; then
        CONFIG=$CODE/$CONFIG
    else  # one from elsewhere stays as it was at the first start, like the code
        local kept=$RUN/jobs/$SLURM_JOB_ID/config.yaml
        if [ ! -f "$kept" ]; then
            python -m launch.job_config resolved "$@" >"$kept.partial" || exit 2
            mv "$kept.partial" "$kept"
        fi
        CONFIG=$kept
    fi
    # Shards are read from the node's own disk where the site has one.
    if [ -n "${SLURM_TMPDIR:-}" ]; then OVERRIDES=("loader.copy_to=$SLURM_TMPDIR" "${OVERRIDES[@]}"); fi
    if [ -z "${SLURM_GPUS_ON_NODE:-}" ]; then
        echo "note: no GPU was asked for, and CPUs are slow: sbatch --gpus-per-node=1 asks for one"
    fi
}

# prepare_and_encode: make the latent shards; nothing in a job that was queued again after it had done so.
prepare_and_encode() {
    local done=$RUN/jobs/$SLURM_JOB_ID/encoded ranks=$((SLURM_JOB_NUM_NODES * $(tasks_per_node)))
    if [ -f "$done" ]; then return; fi
    # Told now, and not after hours of encoding.
    python -m launch.job_config check "$ranks" "$CONFIG" "${OVERRIDES[@]}" || finish $?
    # As a step of the job, which SLURM tells that time is up.
    step --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" \
        sonoshard prepare "$CONFIG" "${OVERRIDES[@]}"
    on_all_nodes encode
    touch "$done"
}

# on_all_nodes COMMAND: run `sonoshard COMMAND CONFIG ...` as one task a GPU.
on_all_nodes() {
    local per_node
    per_node=$(tasks_per_node)
    local cpus=$((SLURM_CPUS_ON_NODE / per_node))
    if [ "$cpus" -eq 0 ]; then cpus=1; fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus}
    # Each task sees all of its node's GPUs, as NCCL wants it.
    step --ntasks=$((SLURM_JOB_NUM_NODES * per_node)) --ntasks-per-node="$per_node" --cpus-per-task="$cpus" \
        ${SLURM_GPUS_ON_NODE:+--gpu-bind=none} sonoshard "$1" "$CONFIG" "${OVERRIDES[@]}"
}

# step OPTION... COMMAND...: run it by srun; the job ends here unless all goes well.
step() {
    # A dead task ends the others, which would wait for it.
    srun --kill-on-bad-exit=1 --overcommit "$@" &
    local step=$! code told
    # SLURM tells the tasks itself when time is up; what it tells this shell alone (scancel --batch) is passed on.
    trap 'told=yes; kill -USR1 $step' USR1 USR2
    trap 'told=yes' TERM
    # A signal ends the waiting, not the step; for one that has ended, bash still knows the exit code.
    while
        told=no
        wait $step
        code=$?
        [ $told = yes ]
    do :; done
    hear_between_steps
    if [ $code -ne 0 ]; then finish $code; fi
}

# hear_between_steps: where no rank runs that would save, the job is queued again at once.
hear_between_steps() { trap 'finish 75' USR1 USR2 TERM; }

# tasks_per_node: one for each GPU, or as many as sbatch was told.
tasks_per_node() { echo "${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}"; }

# finish CODE: end the job, after asking SLURM to run it again where it is to go on.
finish() {
    # One task of an array has the array's own number, which would mean all tasks.
    local again=no job=${JOB:-$SLURM_JOB_ID}
    case $1 in
        0) ;;
        75 | 138 | 140 | 143) again=yes ;;  # stopped on request, or by USR1, USR2 or TERM before it listened
        # What the user gave is wrong, and would be again; unless it was right when the job started first.
        2) if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && is_first_failure_here; then again=yes; fi ;;
        *) if is_first_failure_here; then again=yes; fi ;;
    esac
    # A job that was cancelled would come back by it: it is completing by now. So is one that SLURM itself has queued
    # again. A job that is to be pre-empted runs until its time of grace is over, and would be lost if it just ended.
    if [ $again = yes ]; then
        case "$(squeue --noheader --jobs "$job" --format=%T)" in
            RUNNING)
                echo "== $(date '+%F %T') ended with $1; queued again, to go on"
                scontrol requeue "$job" || echo "SLURM does not queue this job again: submit it again to go on"
                ;;
            "") echo "SLURM does not answer, so this job is not queued again: submit it again to go on" ;;
        esac
    fi
    exit "$1"
}

# is_first_failure_here: a start that failed (a dead node, a lost network) is worth another one. Where the next fails
# without having got any further, it is no accident.
is_first_failure_here() {
    local folder=$RUN/jobs/$SLURM_JOB_ID now
    now=$(
        exec 2>/dev/null
        cat "$RUN"/stages/*/checkpoints/LATEST "$RUN"/stages/*/model/sonoshard.json
        find "$RUN/shards" -name '*.tar' | wc -l
    )
    mkdir -p "$folder"
    if [ -f "$folder/failed-at" ] && [ "$(<"$folder/failed-at")" = "$now" ]; then
        echo "== $(date '+%F %T') failed for the second time at the same place, so this job is not queued again"
        return 1
    fi
    echo "$now" >"$folder/failed-at"
}

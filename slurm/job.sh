# What the job scripts beside this file share; each of them sources it. Runs in the batch shell, on the job's first node.
# Nothing here is meant to be edited: what differs from site to site stands in slurm/site.sh, see site.sh.example.

# begin CONFIG [KEY=VALUE ...]: go to the checkout, set up the environment, write the log to the run's folder.
begin() {
    cd "$SLURM_SUBMIT_DIR" || exit 2
    # Of whoever submitted this, within a job of his own perhaps: its cores and its memory are not this one's.
    unset VIRTUAL_ENV RUN SHARDS CODE CONFIG ${!SLURM_CPU_BIND@} ${!SLURM_MEM_BIND@}
    name_job
    hear_between_steps
    # A job that is queued again goes on with the run, the code and the configuration that it had, whatever was edited.
    # Clusters that share a disk each number their own jobs.
    KNOWN=slurm/.jobs/${SLURM_CLUSTER_NAME:-cluster}-$JOB
    if [ "$RESTARTS" -gt 0 ] && [ -s "$KNOWN" ]; then
        { read -r RUN && read -r SHARDS && read -r CODE && read -r CONFIG; } <"$KNOWN"
        know_run
    elif [ "$RESTARTS" -eq 0 ]; then
        rm -f "$KNOWN"  # of an earlier job of this number
    fi
    if [ -f slurm/site.sh ]; then source slurm/site.sh; fi
    # An environment that site.sh activated goes first.
    if [ -d .venv ] && [ -z "${VIRTUAL_ENV:-}" ]; then PATH=$PWD/.venv/bin:$PATH; fi
    if ! command -v sonoshard >/dev/null; then
        echo "sonoshard is not installed in $PWD/.venv: run 'make install' there on a login node," \
            "or activate its environment in slurm/site.sh" >&2
        finish 2
    fi
    # The code as it was submitted, and all that follows with it: the checkout's own only finds it. Commands keep the
    # checkout as their folder, but import nothing from there.
    if [ -z "${CODE:-}" ]; then
        local found
        found=$(python -m launch.job_config folders "$@") || finish $?
        read -r RUN <<<"$found"
        CODE=$(python -m launch.snapshot "$RUN" "$SUBMITTED") || finish 1
    fi
    source "$CODE/slurm/job.sh" || finish 1
    set_up "$@"
}

# set_up CONFIG [KEY=VALUE ...]: what all commands of the job need.
set_up() {
    export PYTHONPATH=$CODE PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
    OVERRIDES=("${@:2}")
    if [ -z "${CONFIG:-}" ]; then
        CONFIG=$CODE/$1
        if [ ! -f "$CONFIG" ] || [ ! -f "$CODE/COMMIT" ]; then
            CONFIG=$RUN/code/$SUBMITTED.yaml
            if [ ! -f "$CONFIG" ]; then
                echo "note: $1 is not of the commit: it is taken as it is now, and kept for when the job is queued again"
                mkdir -p "$RUN/code" && python -m launch.job_config resolved "$@" >"$CONFIG.$JOB" || finish $?
                mv -f "$CONFIG.$JOB" "$CONFIG"
            fi
        fi
        local found
        found=$(python -m launch.job_config folders "$CONFIG" "${OVERRIDES[@]}") || finish $?
        { read -r RUN && read -r SHARDS; } <<<"$found"
        {
            mkdir -p slurm/.jobs && printf '%s\n' "$RUN" "$SHARDS" "$CODE" "$CONFIG" >"$KNOWN.partial" &&
                mv -f "$KNOWN.partial" "$KNOWN"
        } || echo "note: queued again, this job will look for its run by the configuration as it is then"
        know_run
    fi
    echo "the log is $RUN/slurm-$JOB.log"
    exec >>"$RUN/slurm-$JOB.log" 2>&1
    echo "== $(date '+%F %T') job $JOB on $SLURM_JOB_NODELIST, start $((RESTARTS + 1))"
    # Shards are read from the node's own disk where the site has one.
    if [ -n "${SLURM_TMPDIR:-}" ]; then OVERRIDES=("loader.copy_to=$SLURM_TMPDIR" "${OVERRIDES[@]}"); fi
    if [ -z "${SLURM_GPUS_ON_NODE:-}" ]; then
        echo "note: no GPU was asked for, and CPUs are slow: sbatch --gpus-per-node=1 asks for one"
    fi
}

# name_job: JOB is what SLURM calls it, of a task of an array its own name; SUBMITTED what was submitted, the array;
# RESTARTS how often SLURM has queued it again.
name_job() {
    # sbatch --export=NONE is about this shell; srun would keep the tasks' environment from them too.
    unset SLURM_EXPORT_ENV
    RESTARTS=${SLURM_RESTART_COUNT:-0}
    SUBMITTED=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}
    JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    JOB=${JOB:-$SLURM_JOB_ID}
}

# know_run: make this job's folder in RUN.
know_run() {
    JOB_FOLDER=$RUN/jobs/$SLURM_JOB_ID
    mkdir -p "$JOB_FOLDER" || { JOB_FOLDER=; finish 1; }
    if [ "$RESTARTS" -eq 0 ]; then (cd "$JOB_FOLDER" && rm -f encoded failed stopped); fi
    if [ ! -f "$JOB_FOLDER/name" ]; then echo "$SLURM_JOB_NAME" >"$JOB_FOLDER/name"; fi
    # Where a task leaves what it failed with: the others are then told to stop, and srun tells the highest code.
    export SONOSHARD_EXIT_CODE_FILE=$JOB_FOLDER/exit-code
    rm -f "$SONOSHARD_EXIT_CODE_FILE"
}

# prepare_and_encode: make the latent shards; nothing in a job that was queued again after it had done so.
prepare_and_encode() {
    local done=$JOB_FOLDER/encoded ranks=$((SLURM_JOB_NUM_NODES * $(tasks_per_node)))
    if [ -f "$done" ]; then return; fi
    # Told now, and not after hours of encoding.
    python -m launch.job_config check "$ranks" "$CONFIG" "${OVERRIDES[@]}" || finish $?
    on_all_nodes prepare
    on_all_nodes encode
    touch "$done"
}

# on_all_nodes COMMAND: run `sonoshard COMMAND CONFIG ...` as one task a GPU. As a step of the job, which SLURM tells that
# time is up; `prepare`, too, which the first task does alone.
on_all_nodes() {
    local per_node command=(sonoshard "$1" "$CONFIG" "${OVERRIDES[@]}")
    if [ "$1" = prepare ]; then command=(bash -c 'test "$SLURM_PROCID" -gt 0 || exec "$@"' bash "${command[@]}"); fi
    per_node=$(tasks_per_node)
    local cpus=$((SLURM_CPUS_ON_NODE / per_node))
    if [ "$cpus" -eq 0 ]; then cpus=1; fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus}
    # Each task sees all of its node's GPUs, as NCCL wants it.
    step --ntasks=$((SLURM_JOB_NUM_NODES * per_node)) --ntasks-per-node="$per_node" --cpus-per-task="$cpus" \
        ${SLURM_GPUS_ON_NODE:+--gpu-bind=none} "${command[@]}"
}

# step OPTION... COMMAND...: run it by srun; the job ends here unless all goes well.
step() {
    # A dead task ends the others, which would wait for it.
    srun --kill-on-bad-exit=1 --wait=0 --overcommit "$@" &
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
    trap '' USR1 USR2 TERM  # scontrol requeue sends TERM: this is done once
    local again=no code=$1
    if [ -s "${SONOSHARD_EXIT_CODE_FILE:-}" ]; then code=$(<"$SONOSHARD_EXIT_CODE_FILE"); fi
    case $code in
        0) ;;
        # Stopped on request, or by USR1, USR2 or TERM before it listened. It may be pre-empted again and again before
        # its first step; a time limit that is too short for one is no reason to go on for ever.
        75 | 138 | 140 | 143) if is_seldom stopped 10; then again=yes; fi ;;
        # What the user gave is wrong, and would be again; unless it was right when the job started first.
        2) if [ "$RESTARTS" -gt 0 ] && is_seldom failed 1; then again=yes; fi ;;
        # A dead node, a lost network: where the next start fails without having got any further, it is no accident.
        *) if is_seldom failed 1; then again=yes; fi ;;
    esac
    # A job that was cancelled would come back by it: it is completing by now. So is one that SLURM itself has queued
    # again. A job that is to be pre-empted runs until its time of grace is over, and would be lost if it just ended.
    if [ $again = yes ]; then
        # One task of an array has the array's own number, which would mean all tasks.
        case "$(squeue --noheader --jobs "$JOB" --format=%T)" in
            RUNNING)
                echo "== $(date '+%F %T') ended with $code; queued again, to go on"
                scontrol requeue "$JOB" || echo "SLURM does not queue this job again: submit it again to go on"
                ;;
            "") echo "SLURM does not answer, so this job is not queued again: submit it again to go on" ;;
        esac
    fi
    exit "$code"
}

# is_seldom KIND MOST: whether the job has ended so at most MOST times at the place where it is, this time included.
is_seldom() {
    # Where the run is not known yet, all starts count.
    if [ -z "${JOB_FOLDER:-}" ]; then
        [ "$RESTARTS" -lt "$2" ]
        return
    fi
    local place
    place=$(
        exec 2>/dev/null
        {
            cat "$RUN"/stages/*/checkpoints/LATEST "$RUN"/stages/*/model/sonoshard.json
            find "$SHARDS" -name '*.tar' | wc -l
        } | cksum
    )
    echo "$place" >>"$JOB_FOLDER/$1" || return 1  # what cannot be counted would never end
    if [ "$(grep -cxF "$place" "$JOB_FOLDER/$1")" -gt "$2" ]; then
        echo "== $(date '+%F %T') $1 again, and no further than before: this job is not queued again"
        return 1
    fi
}

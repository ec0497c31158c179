"""What a checkpoint keeps of how far a stage is, where its last steps were bad, and what is read back from it."""

import json

from launch.stage_progress import StageProgress


def test_bad_steps_leave_the_position_where_the_last_good_one_was() -> None:
    losses = {2: 0.5, 4: 0.4, 6: None}
    progress = StageProgress(step=6, num_bad_steps=2, validation_losses=dict(losses), is_looked_at=False)
    assert progress.last_good_step == 4
    assert progress.position == {
        "step": 4,
        "validation_loss": 0.4,
        "validation_losses": {2: 0.5, 4: 0.4},
        "is_looked_at": True,
    }


def test_a_validation_at_a_bad_step_was_of_the_weights_before_it() -> None:
    progress = StageProgress(step=6, num_bad_steps=1, validation_losses={2: 0.5, 6: 0.3})
    assert progress.position["validation_loss"] == 0.3
    assert progress.position["validation_losses"] == {2: 0.5}


def test_what_a_checkpoint_keeps_is_what_is_gone_on_from() -> None:
    progress = StageProgress(step=6, validation_losses={2: 0.5, 6: None}, is_looked_at=False)
    kept = json.loads(json.dumps(progress.position))
    assert StageProgress.of(kept) == progress
    assert StageProgress.of(kept).position == progress.position

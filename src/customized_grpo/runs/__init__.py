"""A run put together of its parts, trained, evaluated and shown; and the folder that holds it.

- ``folder``, ``locking``: what a run's folder holds, and that it is one process's at a time.
- ``parts``: its policy and judges, built.
- ``train``, ``evaluate``, ``generate``: what the commands of these names do.
- ``show``: the pictures and the table that end a run.
- ``trackers``: where else a training is followed.
- ``choice``: which of a run's rewards a command means.
"""

"""What every test finds: one thread a process, and signals as a person's shell has them.

On every machine what a small network has learnt differs in the last bit with the number of threads.
"""

import os
import signal

# Before torch is imported. Several processes test side by side, and what they start inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Who starts tests in the background, or under nohup, has signals ignored; what the tests start would not hear them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

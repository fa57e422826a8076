# Has itself saved 50 times, and knows each time whether it was restarted. Arguments: the directory of the module, a name.
import sys

sys.path.insert(0, sys.argv[1])
import ulpm

assert ulpm.present() and ulpm.job() > 0
restarts = 0
for step in range(1, 51):
    ulpm.hold()
    state = [step, restarts]
    ulpm.release()
    result = ulpm.checkpoint()
    assert state == [step, restarts]
    if result == "restarted":
        restarts += 1
    else:
        assert result == "checkpointed", result
    # A restart may also find it here.
    restarts = ulpm.restarts()
    print("step", step, result, flush=True)
print("ok restarts", restarts, flush=True)

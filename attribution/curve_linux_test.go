package attribution

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"
)

// BenchmarkProcesses is the curve of performance.md: the owner of a program's new socket, beside
// n idle processes. The program is another one each time, so that nothing is remembered of it.
func BenchmarkProcesses(b *testing.B) {
	for _, n := range []int{10, 500, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			idle := exec.Command("setsid", "sh", "-c", fmt.Sprintf(
				`exec </dev/null; i=0; while [ $i -lt %d ]; do sleep 600 >/dev/null & i=$((i+1)); done; echo; exec >/dev/null; wait`, n))
			out, err := idle.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			if err := idle.Start(); err != nil {
				b.Fatal(err)
			}
			defer func() { // the session is all its own
				_ = syscall.Kill(-idle.Process.Pid, syscall.SIGKILL)
				_ = idle.Wait()
			}()
			if _, err := out.Read(make([]byte, 1)); err != nil {
				b.Fatal(err)
			}
			newProcess(b)
		})
	}
}

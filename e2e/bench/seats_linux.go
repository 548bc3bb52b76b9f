package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"gatun/e2e/lab"
)

// seats gives client and server a processor each where that is what the work asks for, on both paths.
// Of the two ways in which the kernel may place them one is several times faster than the other. The
// client is started by the calling goroutine, from whose thread it has its processor.
func (w work) seats(l *lab.Lab, mode string) (leave func(), err error) {
	if !w.seated || mode != modeUp || runtime.NumCPU() < 2 {
		return func() {}, nil
	}
	runtime.LockOSThread()
	leave = func() {
		_ = seat(l.ServerPID, anywhere()) // what was granted a moment ago
		if unix.SchedSetaffinity(0, anywhere()) == nil {
			runtime.UnlockOSThread() // else the thread ends with its goroutine
		}
	}
	return leave, errors.Join(unix.SchedSetaffinity(0, only(0)), seat(l.ServerPID, only(1)))
}

func only(cpu int) *unix.CPUSet {
	var set unix.CPUSet
	set.Set(cpu)
	return &set
}

func anywhere() *unix.CPUSet {
	var set unix.CPUSet
	for i := range runtime.NumCPU() {
		set.Set(i)
	}
	return &set
}

// seat binds all threads of a process; those that it starts later inherit it.
func seat(pid int, set *unix.CPUSet) error {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range tasks {
		tid, _ := strconv.Atoi(t.Name())
		if e := unix.SchedSetaffinity(tid, set); e != nil && !errors.Is(e, unix.ESRCH) { // a thread may have ended
			err = errors.Join(err, e)
		}
	}
	return err
}

package main

import (
	"fmt"
	"os"
	"syscall"
)

// terminate is the signal that asks a command to end.
const terminate = syscall.SIGTERM

// interrupts are the signals by which a person ends a watch.
func interrupts() []os.Signal { return []os.Signal{os.Interrupt, terminate} }

// currentNetNS is the number of this process's network namespace, "" if it cannot be read.
func currentNetNS() string {
	fi, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return ""
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprint(st.Ino)
}

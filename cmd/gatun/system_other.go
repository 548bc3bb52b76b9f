//go:build !linux

package main

import (
	"os"
	"syscall"
)

// terminate is the signal that asks a command to end.
const terminate = syscall.SIGTERM

// interrupts are the signals by which a person ends a watch.
func interrupts() []os.Signal { return []os.Signal{os.Interrupt, terminate} }

// currentNetNS is empty: there are no network namespaces here.
func currentNetNS() string { return "" }

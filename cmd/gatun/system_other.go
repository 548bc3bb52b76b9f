//go:build !linux

package main

import "syscall"

// terminate is the signal that asks a command to end.
const terminate = syscall.SIGTERM

// currentNetNS is empty: there are no network namespaces here.
func currentNetNS() string { return "" }

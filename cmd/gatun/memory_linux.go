package main

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// giveBackProgram unmaps the pages of the program file itself. What start-up alone has run or read is
// most of them, and the kernel maps sixteen pages for each one that is used. Those that are used
// again come back from the page cache, where they stay, within a microsecond each.
func giveBackProgram() {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for _, r := range programRanges(string(maps), program) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, r.start, r.end-r.start, unix.MADV_DONTNEED) // advice: nothing depends on it
	}
}

// addresses are a part of this process's memory.
type addresses struct{ start, end uintptr }

// programRanges finds where the program file is mapped and nobody can have written: what was written
// to a private mapping would be lost.
func programRanges(maps, program string) (ranges []addresses) {
	for line := range strings.Lines(maps) {
		f := strings.Fields(line)
		if len(f) < 6 || strings.Join(f[5:], " ") != program || f[1] != "r--p" && f[1] != "r-xp" {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, strconv.IntSize)
		end, err2 := strconv.ParseUint(to, 16, strconv.IntSize)
		if err1 == nil && err2 == nil && start < end {
			ranges = append(ranges, addresses{uintptr(start), uintptr(end)})
		}
	}
	return ranges
}

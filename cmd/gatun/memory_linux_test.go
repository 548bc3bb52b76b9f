package main

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestProgramRanges(t *testing.T) {
	const maps = `00400000-00d91000 r-xp 00000000 fe:01 1234                       /usr/sbin/gatun
00d91000-01815000 r--p 00991000 fe:01 1234                       /usr/sbin/gatun
01815000-0189c000 rw-p 01415000 fe:01 1234                       /usr/sbin/gatun
0189c000-018de000 rw-p 00000000 00:00 0
c000000000-c004000000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 r--p 00000000 fe:01 99                 /usr/sbin/gatun-other
7f0000002000-7f0000003000 r-xs 00000000 fe:01 1234               /usr/sbin/gatun
7ffd0000-7ffd1000 r-xp 00000000 00:00 0                          [vdso]
zz-7ffd1000 r-xp 00000000 fe:01 1234                             /usr/sbin/gatun
`
	want := []addresses{{0x400000, 0xd91000}, {0xd91000, 0x1815000}}
	if got := programRanges(maps, "/usr/sbin/gatun"); !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	if got := programRanges(maps, "/elsewhere"); got != nil {
		t.Errorf("%x", got)
	}
	if got := programRanges("1000-2000 r-xp 0 fe:01 7 /opt/a b (deleted)\n", "/opt/a b (deleted)"); len(got) != 1 {
		t.Errorf("a name with a space: %x", got)
	}
}

// The program goes on, and less of it is mapped.
func TestGiveBackProgram(t *testing.T) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if len(programRanges(string(maps), program)) == 0 {
		t.Fatalf("the program is not mapped:\n%s", maps)
	}
	giveBackProgram()
	if strings.Repeat("ab", 3) != "ababab" {
		t.Error("what was written is not what is read")
	}
}

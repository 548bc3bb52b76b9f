package nft

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// What tells of one flow is kept back; everything else, and what came together, passes.
func TestQuiet(t *testing.T) {
	filter, ok := bpf.Disassemble(Quiet())
	if !ok {
		t.Fatal("not all of it is an instruction")
	}
	vm, err := bpf.NewVM(filter)
	if err != nil {
		t.Fatal(err)
	}
	message := func(typ uint16, size int) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(size))
		b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_NFTABLES<<8|typ)
		return append(b, make([]byte, size-len(b))...)
	}
	for _, c := range []struct {
		name string
		b    []byte
		pass bool
	}{
		{"element", message(unix.NFT_MSG_NEWSETELEM, 300), false},
		{"element gone", message(unix.NFT_MSG_DELSETELEM, 60), false},
		{"generation", message(unix.NFT_MSG_NEWGEN, 48), false},
		{"table gone", message(unix.NFT_MSG_DELTABLE, 60), true},
		{"rule gone", message(unix.NFT_MSG_DELRULE, 60), true},
		{"set gone", message(unix.NFT_MSG_DELSET, 60), true},
		{"closed flow: out of one set, into another", append(append(message(unix.NFT_MSG_DELSETELEM, 132), message(unix.NFT_MSG_NEWSETELEM, 300)...), message(unix.NFT_MSG_NEWGEN, 48)...), false},
		{"elements without end", bytes.Repeat(message(unix.NFT_MSG_NEWSETELEM, 60), quietMessages+1), true},
		{"element, then table gone", append(message(unix.NFT_MSG_DELSETELEM, 60), message(unix.NFT_MSG_DELTABLE, 60)...), true},
	} {
		if n, err := vm.Run(c.b); err != nil || n > 0 != c.pass {
			t.Errorf("%s: %d bytes pass, %v", c.name, n, err)
		}
	}
}

package nft

import (
	"encoding/binary"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// quietMessages is how many notifications of one message are looked at; what has more passes.
const quietMessages = 16

// Quiet is a socket filter for notifications of nftables. It keeps back those that are only about
// elements of sets and the number of a transaction: without it each flow that is handed back to the
// kernel, and each that ends, wakes everybody who watches. The kernel may put all notifications of a
// transaction into one message; a single one of another kind lets it pass.
func Quiet() []bpf.RawInstruction {
	// In struct nlmsghdr: the low byte of the type, and the two low bytes of the length.
	kind, low, high := uint32(4), uint32(0), uint32(1)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		kind, low, high = 5, 3, 2
	}
	const round = 15                                                      // instructions
	program := []bpf.Instruction{bpf.LoadConstant{Dst: bpf.RegX, Val: 0}} // X: where the notification begins
	for i := range quietMessages {
		behind := uint8((quietMessages - 1 - i) * round) // instructions of the rounds that follow
		program = append(program,
			bpf.LoadIndirect{Off: kind, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.NFT_MSG_NEWSETELEM, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.NFT_MSG_DELSETELEM, SkipTrue: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.NFT_MSG_NEWGEN, SkipTrue: 11 + behind}, // it passes
			bpf.LoadIndirect{Off: high, Size: 1},
			bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 8},
			bpf.StoreScratch{Src: bpf.RegA, N: 0},
			bpf.LoadIndirect{Off: low, Size: 1},
			bpf.ALUOpX{Op: bpf.ALUOpAdd},
			bpf.TAX{},
			bpf.LoadScratch{Dst: bpf.RegA, N: 0},
			bpf.ALUOpX{Op: bpf.ALUOpAdd},
			bpf.TAX{}, // X: where it ends; its length is a multiple of four
			bpf.LoadExtension{Num: bpf.ExtLen},
			bpf.JumpIfX{Cond: bpf.JumpLessOrEqual, SkipTrue: 1 + behind}, // it was the last: kept back
		)
	}
	program = append(program, bpf.RetConstant{Val: 1 << 18}, bpf.RetConstant{Val: 0})
	raw, err := bpf.Assemble(program)
	if err != nil {
		panic(err) // a constant
	}
	return raw
}

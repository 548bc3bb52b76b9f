package state

import (
	"strconv"

	"github.com/cilium/ebpf/asm"
)

// code writes a program for the kernel. R6 to R9 survive calls, R10 is the frame.
type code struct {
	ins    asm.Instructions
	label  string // of the next instruction
	labels int
}

func (c *code) add(all ...asm.Instruction) {
	for _, in := range all {
		if c.label != "" {
			in = in.WithSymbol(c.label)
			c.label = ""
		}
		c.ins = append(c.ins, in)
	}
}

// at names the next instruction.
func (c *code) at(label string) {
	if c.label != "" {
		c.add(asm.Mov.Reg(asm.R0, asm.R0)) // two names for one place
	}
	c.label = label
}

// fresh returns a label that is used nowhere else.
func (c *code) fresh() string {
	c.labels++
	return "l" + strconv.Itoa(c.labels)
}

// load reads a member of the kernel structure that src points to.
func (c *code) load(dst, src asm.Register, f field) {
	size := asm.DWord
	switch f.size {
	case 4:
		size = asm.Word
	case 2:
		size = asm.Half
	case 1:
		size = asm.Byte
	}
	c.add(asm.LoadMem(dst, src, f.offset, size))
}

// zero clears count words of 8 bytes.
func (c *code) zero(dst asm.Register, offset int16, count int16) {
	c.add(asm.Mov.Imm(asm.R1, 0))
	for i := range count {
		c.add(asm.StoreMem(dst, offset+8*i, asm.R1, asm.DWord))
	}
}

// fence lets nothing that is read behind it be older than what was written before it.
func (c *code) fence() {
	c.add(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, framePeek, asm.R1, asm.DWord),
		atomically(asm.Xchg, asm.RFP, asm.R1, framePeek),
	)
}

// atomically is op.Mem for 8 bytes, with the operation also where the library's encoder takes it from.
func atomically(op asm.AtomicOp, dst, src asm.Register, offset int16) asm.Instruction {
	in := op.Mem(dst, src, asm.DWord, offset)
	in.Constant = int64(op >> 8)
	return in
}

// frame points dst at the frame.
func (c *code) frame(dst asm.Register, offset int32) {
	c.add(asm.Mov.Reg(dst, asm.RFP), asm.Add.Imm(dst, offset))
}

// peek reads 8 bytes of kernel memory at src+offset into R1; what cannot be read is 0.
func (c *code) peek(src asm.Register, offset int32) {
	c.frame(asm.R1, framePeek)
	c.add(
		asm.Mov.Imm(asm.R2, 8),
		asm.Mov.Reg(asm.R3, src),
		asm.Add.Imm(asm.R3, offset),
		asm.FnProbeReadKernel.Call(),
		asm.LoadMem(asm.R1, asm.RFP, framePeek, asm.DWord),
	)
}

// allow ends the program: the packet or call goes on, whatever was noted.
func (c *code) allow() {
	c.at("allow")
	c.add(asm.Mov.Imm(asm.R0, 1), asm.Return())
}

// Places in the frame.
const (
	frameID   = -16 // imageID of the running task
	frameUID  = -24 // its effective user
	framePeek = -32 // what peek read
	frameKeep = -40 // one value over a call
	frameKey  = frameKeep - keySize
	frameRec  = frameKey - recSize
	frameHead = frameRec - 64 // headers of a packet

	framePermit = frameKey // a connect has no packet
)

// current puts the task that runs into R7, and who it is into the frame.
func (c *code) current(l *layout) {
	c.add(asm.FnGetCurrentTaskBtf.Call(), asm.Mov.Reg(asm.R7, asm.R0))
	c.load(asm.R1, asm.R7, l.tgid)
	c.add(asm.StoreMem(asm.RFP, frameID+idPID, asm.R1, asm.Word))
	c.load(asm.R1, asm.R7, l.execID)
	c.add(asm.StoreMem(asm.RFP, frameID+idExec, asm.R1, asm.Word))
	c.load(asm.R1, asm.R7, l.leader)
	c.load(asm.R1, asm.R1, l.start)
	c.add(asm.StoreMem(asm.RFP, frameID+idStart, asm.R1, asm.DWord))
	c.load(asm.R1, asm.R7, l.cred)
	c.load(asm.R1, asm.R1, l.euid)
	c.add(asm.StoreMem(asm.RFP, frameUID, asm.R1, asm.Word))
}

// unlessSame jumps if the words at a+aOff and b+bOff differ.
func (c *code) unlessSame(a asm.Register, aOff int16, b asm.Register, bOff int16, size asm.Size, label string) {
	c.add(
		asm.LoadMem(asm.R1, a, aOff, size),
		asm.LoadMem(asm.R2, b, bOff, size),
		asm.JNE.Reg(asm.R1, asm.R2, label),
	)
}

// copy copies words of 8 bytes.
func (c *code) copy(dst asm.Register, dstOff int16, src asm.Register, srcOff int16, words int) {
	for i := range int16(words) {
		c.add(
			asm.LoadMem(asm.R1, src, srcOff+8*i, asm.DWord),
			asm.StoreMem(dst, dstOff+8*i, asm.R1, asm.DWord),
		)
	}
}

package state

import "github.com/cilium/ebpf/asm"

const (
	// struct bpf_sock_addr.
	sockAddrIP4      = 4
	sockAddrIP6      = 8
	sockAddrPort     = 24
	sockAddrType     = 32
	sockAddrProtocol = 36
	// struct bpf_sock.
	sockDevice     = 0
	sockFamily     = 4
	sockMark       = 16
	sockSource4    = 24
	sockSource6    = 28
	sockSourcePort = 44
	sockTargetPort = 48
	sockTarget4    = 52
	sockTarget6    = 56

	skbMark = 8 // struct __sk_buff: mark

	socketLevel = 1  // SOL_SOCKET
	optionMark  = 36 // SO_MARK

	noWakeUp, wakeUp = 1, 2 // BPF_RB_NO_WAKEUP, BPF_RB_FORCE_WAKEUP
)

// permit gives the socket of a connect(2) the mark if its connection is permitted already, and notes for
// which destination: R6 is the context, R8 what is kept with the socket, R7 the task, whose identity is
// in the frame. Whatever is not known for sure leaves the socket without the mark, and begins as ever.
func (h *hooks) permit(c *code, is6 bool) {
	h.permitKey(c, is6)
	c.add(asm.LoadMapPtr(asm.R1, h.permits.FD()))
	c.frame(asm.R2, framePermit)
	c.add(
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "missed"),
		asm.LoadMem(asm.R9, asm.R0, permitGeneration, asm.DWord),
		asm.LoadMem(asm.R1, asm.R0, permitUntil, asm.DWord),
		asm.StoreMem(asm.RFP, frameKeep, asm.R1, asm.DWord),
		asm.JEq.Imm(asm.R9, 0, "missed"),
	)
	h.control(c, controlGeneration, "missed")
	c.add(
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R9, "missed"),
		asm.FnKtimeGetNs.Call(),
		asm.LoadMem(asm.R1, asm.RFP, frameKeep, asm.DWord),
		asm.JGE.Reg(asm.R0, asm.R1, "missed"),
		asm.LoadMem(asm.R2, asm.R6, sockAddrSocket, asm.DWord),
		asm.LoadMem(asm.R1, asm.R2, sockDevice, asm.Word),
		asm.JNE.Imm(asm.R1, 0, "missed"),
		asm.LoadMem(asm.R1, asm.R2, sockMark, asm.Word),
		asm.JEq.Imm(asm.R1, 0, "unmarked"),
		// It may be ours, of a connect before. Anybody else's is left alone.
		asm.LoadImm(asm.R2, int64(h.mark), asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, "missed"),
	)
	c.at("unmarked")
	c.add(asm.LoadImm(asm.R1, int64(h.mark), asm.DWord))
	c.setMark()
	c.add(asm.JNE.Imm(asm.R0, 0, "missed"))
	c.copy(asm.R8, claimPermit, asm.RFP, framePermit, permitKeySize/8)
	c.zero(asm.R8, claimTold, 1)
	c.add(asm.StoreMem(asm.R8, claimGeneration, asm.R9, asm.DWord), asm.Ja.Label("judged"))
	c.at("missed") // the mark that it has of a connect before, or of itself, does not hold for this one
	c.zero(asm.R8, claimGeneration, 1)
	c.add(
		asm.LoadMem(asm.R2, asm.R6, sockAddrSocket, asm.DWord),
		asm.LoadMem(asm.R1, asm.R2, sockMark, asm.Word),
		asm.Mov.Reg(asm.R3, asm.R1),
		asm.LoadImm(asm.R2, int64(h.mask), asm.DWord),
		asm.And.Reg(asm.R3, asm.R2),
		asm.Xor.Reg(asm.R1, asm.R3),
		asm.LoadImm(asm.R2, int64(h.mark), asm.DWord),
		asm.JNE.Reg(asm.R3, asm.R2, "judged"),
	)
	c.setMark()
	c.at("judged")
}

// permitKey writes who connects to what into the frame. What never begins ahead is judged.
func (h *hooks) permitKey(c *code, is6 bool) {
	c.add(
		asm.LoadMem(asm.R1, asm.R6, sockAddrProtocol, asm.Word),
		asm.JNE.Imm(asm.R1, protoTCP, "judged"),
		asm.LoadMem(asm.R1, asm.R6, sockAddrType, asm.Word),
		asm.JNE.Imm(asm.R1, typeStream, "judged"),
		asm.LoadMem(asm.R1, asm.R8, claimHere, asm.Word),
		asm.JNE.Imm(asm.R1, here, "judged"),
	)
	c.copy(asm.RFP, framePermit+permitID, asm.RFP, frameID, 2)
	c.zero(asm.RFP, framePermit+permitUID, 3)
	family := int64(familyV4)
	if is6 {
		family = familyV6
	}
	c.add(
		asm.LoadMem(asm.R1, asm.RFP, frameUID, asm.Word),
		asm.StoreMem(asm.RFP, framePermit+permitUID, asm.R1, asm.Word),
		asm.StoreImm(asm.RFP, framePermit+permitFamily, family, asm.Byte),
		asm.StoreImm(asm.RFP, framePermit+permitProto, protoTCP, asm.Byte),
		asm.LoadMem(asm.R1, asm.R6, sockAddrPort, asm.Word),
		asm.StoreMem(asm.RFP, framePermit+permitPort, asm.R1, asm.Half),
	)
	if !is6 {
		c.add(
			asm.StoreImm(asm.RFP, framePermit+permitRemote+10, 0xffff, asm.Half),
			asm.LoadMem(asm.R1, asm.R6, sockAddrIP4, asm.Word),
			asm.StoreMem(asm.RFP, framePermit+permitRemote+12, asm.R1, asm.Word),
		)
		return
	}
	for i := range int16(4) {
		c.add(
			asm.LoadMem(asm.R1, asm.R6, sockAddrIP6+4*i, asm.Word),
			asm.StoreMem(asm.RFP, framePermit+permitRemote+4*i, asm.R1, asm.Word),
		)
	}
}

// setMark sets SO_MARK of the context's socket to R1; R0 is 0 if that was done.
func (c *code) setMark() {
	c.add(
		asm.StoreMem(asm.RFP, framePeek, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, socketLevel),
		asm.Mov.Imm(asm.R3, optionMark),
	)
	c.frame(asm.R4, framePeek)
	c.add(asm.Mov.Imm(asm.R5, 4), asm.FnSetsockopt.Call())
}

// control points R0 at a word of the table by which this process speaks to the hooks.
func (h *hooks) control(c *code, word int64, missing string) {
	c.add(asm.StoreImm(asm.RFP, framePeek, word, asm.Word))
	c.frame(asm.R2, framePeek)
	c.add(
		asm.LoadMapPtr(asm.R1, h.controls.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, missing),
	)
}

// unlessMarked jumps unless the packet R6 has the mark.
func (h *hooks) unlessMarked(c *code, label string) {
	c.add(
		asm.LoadMem(asm.R1, asm.R6, skbMark, asm.Word),
		asm.LoadImm(asm.R2, int64(h.mask), asm.DWord),
		asm.And.Reg(asm.R1, asm.R2),
		asm.LoadImm(asm.R2, int64(h.mark), asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, label),
	)
}

// unlessElsewhere loads what is kept with the socket R9 into R8, and jumps if the socket is one of another
// network namespace, where the mark means what somebody else wants. What nobody knows is denied.
func (h *hooks) unlessElsewhere(c *code, label string) {
	c.add(
		asm.LoadMapPtr(asm.R1, h.claims.FD()),
		asm.Mov.Reg(asm.R2, asm.R9),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnSkStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, "deny"),
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.LoadMem(asm.R1, asm.R8, claimHere, asm.Word),
		asm.JNE.Imm(asm.R1, here, label),
	)
}

// begin judges a SYN that leaves with the mark, R9 its socket. Only the rules for permitted destinations
// let one come this far, and they do not see whose it is: whoever may set marks gets there. So it goes on
// only if the socket was given the mark, for the destination that it has now; and only after the
// connection was told to this process.
func (h *hooks) begin(c *code) {
	h.unlessElsewhere(c, "owned")
	c.add(
		asm.LoadMem(asm.R1, asm.R8, claimGeneration, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, "deny"),
		asm.LoadMem(asm.R1, asm.R9, sockTargetPort, asm.Half),
		asm.LoadMem(asm.R2, asm.R8, claimPermit+permitPort, asm.Half),
		asm.JNE.Reg(asm.R1, asm.R2, "deny"),
		asm.LoadMem(asm.R1, asm.R8, claimPermit+permitFamily, asm.Byte),
		asm.JEq.Imm(asm.R1, familyV6, "target6"),
		asm.LoadMem(asm.R1, asm.R9, sockTarget4, asm.Word),
		asm.LoadMem(asm.R2, asm.R8, claimPermit+permitRemote+12, asm.Word),
		asm.JNE.Reg(asm.R1, asm.R2, "deny"),
		asm.Ja.Label("proven"),
	)
	c.at("target6")
	for i := range int16(4) {
		c.unlessSame(asm.R9, sockTarget6+4*i, asm.R8, claimPermit+permitRemote+4*i, asm.Word, "deny")
	}
	c.at("proven")
	c.add(
		asm.LoadMem(asm.R1, asm.R8, claimTold, asm.DWord),
		asm.JEq.Imm(asm.R1, 1, "allow"), // sent again: it was told, and what became of it is decided there
		asm.JNE.Imm(asm.R1, 0, "deny"),
	)
	h.tell(c)
}

// tell tells of the connection of socket R9, kept with it R8. Where that is not possible the SYN does not
// leave, and comes again.
func (h *hooks) tell(c *code) {
	h.control(c, controlGeneration, "deny")
	c.add(
		asm.Mov.Imm(asm.R7, toldBegun),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.LoadMem(asm.R2, asm.R8, claimGeneration, asm.DWord),
		asm.JEq.Reg(asm.R1, asm.R2, "current"),
		asm.Mov.Imm(asm.R7, toldStale),
	)
	c.at("current")
	c.add(
		asm.LoadMapPtr(asm.R1, h.begun.FD()),
		asm.Mov.Imm(asm.R2, begunSize),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnRingbufReserve.Call(),
		asm.JEq.Imm(asm.R0, 0, "deny"),
	)
	c.copy(asm.R0, begunPermit, asm.R8, claimPermit, permitKeySize/8)
	c.copy(asm.R0, begunCookie, asm.R8, claimCookie, 1)
	c.add(
		asm.StoreMem(asm.R0, begunTold, asm.R7, asm.DWord),
		asm.StoreMem(asm.R8, claimTold, asm.R7, asm.DWord),
		asm.LoadMem(asm.R1, asm.R9, sockSourcePort, asm.Word),
		asm.StoreMem(asm.R0, begunPort, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.R0, begunLocal, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R8, claimPermit+permitFamily, asm.Byte),
		asm.JEq.Imm(asm.R1, familyV6, "source6"),
		asm.StoreImm(asm.R0, begunLocal+8, 0, asm.Half),
		asm.StoreImm(asm.R0, begunLocal+10, 0xffff, asm.Half),
		asm.LoadMem(asm.R1, asm.R9, sockSource4, asm.Word),
		asm.StoreMem(asm.R0, begunLocal+12, asm.R1, asm.Word),
		asm.Ja.Label("ring"),
	)
	c.at("source6")
	for i := range int16(4) {
		c.add(asm.LoadMem(asm.R1, asm.R9, sockSource6+4*i, asm.Word), asm.StoreMem(asm.R0, begunLocal+4*i, asm.R1, asm.Word))
	}
	c.at("ring")
	c.add(asm.Mov.Reg(asm.R9, asm.R0), asm.StoreImm(asm.RFP, framePeek, controlArmed, asm.Word))
	c.frame(asm.R2, framePeek)
	c.add(
		asm.LoadMapPtr(asm.R1, h.controls.FD()),
		asm.FnMapLookupElem.Call(),
		asm.Mov.Imm(asm.R2, noWakeUp),
		asm.JEq.Imm(asm.R0, 0, "submit"),
		asm.Mov.Imm(asm.R1, 0),
		exchange(asm.R0, asm.R1), // also a barrier: who arms after this sees the record
		asm.JEq.Imm(asm.R1, 0, "submit"),
		asm.Mov.Imm(asm.R2, wakeUp),
	)
	c.at("submit")
	c.add(
		asm.Mov.Reg(asm.R1, asm.R9),
		asm.FnRingbufSubmit.Call(),
		asm.JEq.Imm(asm.R7, toldBegun, "allow"),
		asm.Ja.Label("deny"),
	)
}

// exchange swaps src with the 8 bytes at dst. The library writes the kind of an atomic operation only as a
// constant (v0.22.0).
func exchange(dst, src asm.Register) asm.Instruction {
	in := asm.Xchg.Mem(dst, src, asm.DWord, 0)
	in.Constant = 0xe1 // BPF_XCHG
	return in
}

// deny ends the program behind allow: the packet goes nowhere.
func (c *code) deny() {
	c.at("deny")
	c.add(asm.Mov.Imm(asm.R0, 0), asm.Return())
}

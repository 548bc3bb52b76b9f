package state

import "github.com/cilium/ebpf/asm"

const (
	sockAddrSocket = 64 // struct bpf_sock_addr: sk
	sockType       = 8  // struct bpf_sock: type
	sockProtocol   = 12
	sockState      = 72

	typeStream = 1
	typeRaw    = 3
	stateSyn   = 2 // TCP_SYN_SENT
)

// connectProgram notes who connects a socket, and gives it the mark if that connection is permitted
// already. It runs in the system call of that process.
func (h *hooks) connectProgram(l *layout, is6 bool) asm.Instructions {
	c := &code{}
	c.add(asm.Mov.Reg(asm.R6, asm.R1))
	c.current(l)
	h.unlessOurs(c)
	c.add(asm.LoadMem(asm.R2, asm.R6, sockAddrSocket, asm.DWord))
	h.claim(c, "same")
	c.at("same")
	if h.mark != 0 {
		h.permit(c, is6)
	}
	h.capture(c, l)
	c.allow()
	return c.ins
}

// addressProgram notes who addresses a datagram.
func (h *hooks) addressProgram(l *layout) asm.Instructions {
	c := &code{}
	c.add(asm.Mov.Reg(asm.R6, asm.R1))
	c.current(l)
	h.unlessOurs(c)
	c.add(asm.LoadMem(asm.R2, asm.R6, sockAddrSocket, asm.DWord))
	h.claim(c, "allow")
	h.capture(c, l)
	c.allow()
	return c.ins
}

// createProgram does the same for those sockets that need neither to send: raw ones and those
// of ping; and for those about whose connect the kernel does not tell: SCTP, UDP-Lite and DCCP.
func (h *hooks) createProgram(l *layout) asm.Instructions {
	c := &code{}
	c.add(
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R1, asm.R6, sockType, asm.Word),
		asm.JEq.Imm(asm.R1, typeRaw, "wanted"),
		asm.LoadMem(asm.R1, asm.R6, sockProtocol, asm.Word),
		asm.JEq.Imm(asm.R1, protoICMP, "wanted"),
		asm.JEq.Imm(asm.R1, protoICMPv6, "wanted"),
		asm.JEq.Imm(asm.R1, protoDCCP, "wanted"),
		asm.JEq.Imm(asm.R1, protoSCTP, "wanted"),
		asm.JEq.Imm(asm.R1, protoUDPLite, "wanted"),
		asm.Ja.Label("allow"),
	)
	c.at("wanted")
	c.current(l)
	h.unlessOurs(c)
	c.add(asm.Mov.Reg(asm.R2, asm.R6))
	h.claim(c, "allow")
	h.capture(c, l)
	c.allow()
	return c.ins
}

// unlessOurs ends the program if the task in the frame is ourselves: what we relay is nobody's
// question, and costs nothing more this way.
func (h *hooks) unlessOurs(c *code) {
	c.add(asm.StoreImm(asm.RFP, framePeek, 0, asm.Word))
	c.frame(asm.R2, framePeek)
	c.add(
		asm.LoadMapPtr(asm.R1, h.ours.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "allow"),
	)
	c.unlessSame(asm.R0, 0, asm.RFP, frameID+idPID, asm.Word, "theirs")
	c.add(asm.Ja.Label("allow"))
	c.at("theirs")
}

// claim keeps the running task with the socket in R2, and leaves what is kept there in R8; R6 is the
// context, R7 the task. It jumps to same if it was kept already.
func (h *hooks) claim(c *code, same string) {
	c.add(
		asm.LoadMapPtr(asm.R1, h.claims.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 1), // BPF_SK_STORAGE_GET_F_CREATE
		asm.FnSkStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, "allow"),
		asm.Mov.Reg(asm.R8, asm.R0),
	)
	c.unlessSame(asm.R8, claimID, asm.RFP, frameID, asm.DWord, "changed")
	c.unlessSame(asm.R8, claimID+8, asm.RFP, frameID+8, asm.DWord, "changed")
	c.unlessSame(asm.R8, claimUID, asm.RFP, frameUID, asm.Word, "changed")
	c.add(asm.Ja.Label(same))
	c.at("changed")
	c.zero(asm.R8, claimSeen, 1)
	c.copy(asm.R8, claimID, asm.RFP, frameID, 2)
	c.add(
		asm.LoadMem(asm.R1, asm.RFP, frameUID, asm.Word),
		asm.StoreMem(asm.R8, claimUID, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(asm.R8, claimCookie, asm.R0, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.FnGetNetnsCookie.Call(),
		asm.StoreMem(asm.R8, claimNetNS, asm.R0, asm.DWord),
		asm.LoadImm(asm.R2, int64(h.netns), asm.DWord),
		asm.Mov.Imm(asm.R1, elsewhere),
		asm.JNE.Reg(asm.R0, asm.R2, "foreign"),
		asm.Mov.Imm(asm.R1, here),
	)
	c.at("foreign")
	c.add(asm.StoreMem(asm.R8, claimHere, asm.R1, asm.Word))
}

// capture keeps the image that the task in R7 runs, unless it is known.
func (h *hooks) capture(c *code, l *layout) {
	h.image(c)
	c.add(asm.JNE.Imm(asm.R0, 0, "allow"))
	c.add(asm.StoreImm(asm.RFP, framePeek, 0, asm.Word))
	c.frame(asm.R2, framePeek)
	c.add(
		asm.LoadMapPtr(asm.R1, h.blank.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "allow"),
		asm.Mov.Reg(asm.R3, asm.R0),
		asm.LoadMapPtr(asm.R1, h.images.FD()),
	)
	c.frame(asm.R2, frameID)
	c.add(asm.Mov.Imm(asm.R4, 1), asm.FnMapUpdateElem.Call()) // BPF_NOEXIST
	h.image(c)
	c.add(asm.JEq.Imm(asm.R0, 0, "allow"), asm.Mov.Reg(asm.R9, asm.R0))
	captureTask(c, l)
	captureMemory(c, l)
	capturePath(c, l)
	c.at("named")
	c.add(asm.StoreMem(asm.R9, imgPathLen, asm.R7, asm.Word), asm.StoreImm(asm.R9, imgReady, 1, asm.Word))
}

// image looks up the record of the image in the frame.
func (h *hooks) image(c *code) {
	c.add(asm.LoadMapPtr(asm.R1, h.images.FD()))
	c.frame(asm.R2, frameID)
	c.add(asm.FnMapLookupElem.Call())
}

// captureTask notes what the task R7 says about itself.
func captureTask(c *code, l *layout) {
	c.load(asm.R1, asm.R7, l.parent)
	c.load(asm.R1, asm.R1, l.tgid)
	c.add(asm.StoreMem(asm.R9, imgParent, asm.R1, asm.Word))
	c.load(asm.R1, asm.R7, l.nsproxy)
	c.load(asm.R1, asm.R1, l.mntNS)
	c.add(asm.StoreMem(asm.R9, imgMountNS, asm.R1, asm.DWord))
	c.load(asm.R6, asm.R7, l.fs)
	c.peek(asm.R6, int32(l.fsRoot.offset+l.pathDentry.offset))
	c.add(asm.StoreMem(asm.R9, imgRootEntry, asm.R1, asm.DWord))
	c.add(
		asm.FnGetCurrentCgroupId.Call(),
		asm.StoreMem(asm.R9, imgCGroup, asm.R0, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R9),
		asm.Add.Imm(asm.R1, imgComm),
		asm.Mov.Imm(asm.R2, 16),
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.Add.Imm(asm.R3, int32(l.comm.offset)),
		asm.FnProbeReadKernel.Call(),
	)
}

// captureMemory notes layout and arguments of the image of task R7, and leaves its binary's
// entry in R6 and its mount in R8.
func captureMemory(c *code, l *layout) {
	c.load(asm.R6, asm.R7, l.mm)
	c.add(asm.Mov.Imm(asm.R7, 0), asm.JEq.Imm(asm.R6, 0, "named")) // a thread of the kernel
	for i, f := range []field{l.code, l.stack, l.argStart, l.envEnd} {
		c.load(asm.R1, asm.R6, f)
		c.add(asm.StoreMem(asm.R9, int16(imgLayout+8*i), asm.R1, asm.DWord))
	}
	c.load(asm.R3, asm.R6, l.argStart)
	c.load(asm.R2, asm.R6, l.argEnd)
	c.add(
		asm.Sub.Reg(asm.R2, asm.R3),
		asm.StoreImm(asm.R9, imgArgsLen, argsRoom+1, asm.Word),
		asm.JGT.Imm(asm.R2, argsRoom, "binary"),
		asm.Mov.Reg(asm.R8, asm.R2),
		asm.Mov.Reg(asm.R1, asm.R9),
		asm.Add.Imm(asm.R1, imgArgs),
		asm.FnProbeReadUser.Call(),
		asm.JNE.Imm(asm.R0, 0, "binary"),
		asm.StoreMem(asm.R9, imgArgsLen, asm.R8, asm.Word),
	)
	c.at("binary")
	c.load(asm.R6, asm.R6, l.exe)
	c.peek(asm.R6, int32(l.filePath.offset+l.pathMnt.offset))
	c.add(asm.Mov.Reg(asm.R8, asm.R1))
	c.peek(asm.R6, int32(l.filePath.offset+l.pathDentry.offset))
	c.add(asm.Mov.Reg(asm.R6, asm.R1))
	c.peek(asm.R6, int32(l.dInode.offset))
	c.add(asm.Mov.Reg(asm.R7, asm.R1))
	c.peek(asm.R7, int32(l.ino.offset))
	c.add(asm.StoreMem(asm.R9, imgInode, asm.R1, asm.DWord))
	c.peek(asm.R7, int32(l.sb.offset))
	c.add(asm.Mov.Reg(asm.R7, asm.R1))
	c.peek(asm.R7, int32(l.dev.offset))
	c.add(asm.StoreMem(asm.R9, imgDevice, asm.R1, asm.Word), asm.Mov.Imm(asm.R7, 0))
}

// capturePath notes the names from the entry R6 of mount R8 up to the root of all mounts. R7
// counts their bytes. A file without a name, or one that was renamed away on the way, leaves
// imgPathDone at 0.
func capturePath(c *code, l *layout) {
	whole := int32(l.mnt.offset) // from a struct vfsmount back to the struct mount around it
	for range pathDepth {
		name, next := c.fresh(), c.fresh()
		c.peek(asm.R8, int32(l.mntRoot.offset))
		c.add(asm.JNE.Reg(asm.R1, asm.R6, name))
		c.peek(asm.R8, int32(l.mntParent.offset)-whole)
		c.add(
			asm.Add.Imm(asm.R1, whole),
			asm.StoreMem(asm.RFP, frameKeep, asm.R1, asm.DWord),
			asm.JEq.Reg(asm.R1, asm.R8, "root"),
		)
		c.peek(asm.R8, int32(l.mountpoint.offset)-whole)
		c.add(
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R8, asm.RFP, frameKeep, asm.DWord),
			asm.Ja.Label(next),
		)
		c.at(name)
		c.peek(asm.R6, int32(l.dHash.offset+l.hashPprev.offset))
		c.add(asm.JEq.Imm(asm.R1, 0, "named")) // deleted
		c.peek(asm.R6, int32(l.dName.offset+l.qName.offset))
		c.add(
			asm.Mov.Reg(asm.R3, asm.R1),
			asm.Mov.Reg(asm.R1, asm.R9),
			asm.Add.Reg(asm.R1, asm.R7),
			asm.Add.Imm(asm.R1, imgPath),
			asm.Mov.Imm(asm.R2, nameRoom),
			asm.FnProbeReadKernelStr.Call(),
			asm.JSLE.Imm(asm.R0, 1, "named"),
			asm.Add.Reg(asm.R7, asm.R0),
			asm.JGE.Imm(asm.R7, pathLimit, "long"),
		)
		c.peek(asm.R6, int32(l.dParent.offset))
		c.add(asm.JEq.Reg(asm.R1, asm.R6, "named"), asm.Mov.Reg(asm.R6, asm.R1))
		c.at(next)
	}
	c.add(asm.Ja.Label("named"))
	c.at("long")
	c.add(asm.Mov.Imm(asm.R7, 0), asm.Ja.Label("named"))
	c.at("root")
	c.add(asm.StoreImm(asm.R9, imgPathDone, 1, asm.Word))
}

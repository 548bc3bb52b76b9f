package state

import "github.com/cilium/ebpf/asm"

const (
	skbInterface = 40  // struct __sk_buff: ifindex
	skbSocket    = 168 // sk

	loopback = 1 // its index in every network namespace

	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	protoDCCP    = 33
	protoSCTP    = 132
	protoUDPLite = 136

	headerV4 = 20
	headerV6 = 40
)

// egressProgram notes who sends the first packet of a flow. It sees each packet of each process
// that leaves through IP, datagrams in the system call of their sender.
func (h *hooks) egressProgram(l *layout) asm.Instructions {
	c := &code{}
	local := "allow"
	if h.arrival != 0 {
		local = "local"
	}
	c.add(
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R1, asm.R6, skbInterface, asm.Word),
		asm.JEq.Imm(asm.R1, loopback, local),
	)
	c.begins("datagram")
	if h.mark != 0 {
		h.unlessMarked(c, "owned")
		h.begin(c)
	} else {
		c.add(asm.Ja.Label("owned"))
	}
	c.at("datagram")
	if h.mark != 0 {
		c.add(asm.Mov.Reg(asm.R7, asm.R1))
		h.unlessMarked(c, "owned")
		// A datagram that has the mark here is of a flow that was handed back: nobody asks whose it is.
		c.add(asm.JNE.Imm(asm.R7, typeRaw, "allow"))
		// Nobody gives it to a raw socket, which could send the SYN of anybody.
		h.unlessElsewhere(c, "owned")
		c.add(asm.Ja.Label("deny"))
	}
	c.at("owned")
	c.add(
		asm.LoadMapPtr(asm.R1, h.claims.FD()),
		asm.Mov.Reg(asm.R2, asm.R9),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnSkStorageGet.Call(),
		asm.JEq.Imm(asm.R0, 0, "allow"),
		asm.Mov.Reg(asm.R8, asm.R0),
	)
	h.sender(c, l)
	h.key(c)
	h.note(c)
	// Somebody else's socket: is it a fork of the one who connected it?
	c.at("known")
	c.add(
		asm.LoadMem(asm.R1, asm.RFP, frameRec+recSure, asm.Word),
		asm.JNE.Imm(asm.R1, 0, "allow"),
	)
	c.current(l)
	h.capture(c, l)
	if h.arrival != 0 {
		c.add(asm.Ja.Label("allow"))
		h.local(c)
	}
	c.allow()
	if h.mark != 0 {
		c.deny()
	}
	return c.ins
}

// begins lets pass what begins no flow: of the socket R9 of the packet R6, whose type is in R1, only a SYN goes
// on, or at the label what is no stream.
func (c *code) begins(other string) {
	c.add(
		asm.LoadMem(asm.R1, asm.R6, skbSocket, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, "allow"),
		asm.FnSkFullsock.Call(),
		asm.JEq.Imm(asm.R0, 0, "allow"),
		asm.Mov.Reg(asm.R9, asm.R0),
		asm.LoadMem(asm.R1, asm.R9, sockType, asm.Word),
		asm.JNE.Imm(asm.R1, typeStream, other),
		asm.LoadMem(asm.R1, asm.R9, sockState, asm.Word),
		asm.JNE.Imm(asm.R1, stateSyn, "allow"),
	)
}

// local picks out of what stays on this machine the datagrams and SYNs to the port of OwnersOptions.Arrival;
// those with IP options or extension headers pass unseen.
func (h *hooks) local(c *code) {
	c.at("local")
	c.begins("arrives")
	c.at("arrives")
	c.read(0, headerV4+4)
	c.add(
		asm.LoadMem(asm.R1, asm.RFP, frameHead, asm.Byte),
		asm.JEq.Imm(asm.R1, 4<<4|headerV4/4, "arrives4"),
		asm.RSh.Imm(asm.R1, 4),
		asm.JNE.Imm(asm.R1, 6, "allow"),
	)
	c.read(headerV6, 4)
	c.add(asm.LoadMem(asm.R1, asm.RFP, frameHead+2, asm.Half), asm.Ja.Label("arrival"))
	c.at("arrives4")
	c.add(asm.LoadMem(asm.R1, asm.RFP, frameHead+headerV4+2, asm.Half))
	c.at("arrival")
	c.add(asm.HostTo(asm.BE, asm.R1, asm.Half), asm.JEq.Imm(asm.R1, int32(h.arrival), "owned"), asm.Ja.Label("allow"))
}

// sender begins the record: the task that runs, which for a datagram is its sender. A SYN may
// also be sent again by a timer, in the time of anybody: its sender is who connected.
func (h *hooks) sender(c *code, l *layout) {
	c.add(asm.StoreImm(asm.RFP, frameRec+recSure, 1, asm.Word))
	c.add(
		asm.LoadMem(asm.R1, asm.R9, sockType, asm.Word),
		asm.JEq.Imm(asm.R1, typeStream, "connector"),
	)
	c.current(l)
	c.copy(asm.RFP, frameRec+recID, asm.RFP, frameID, 2)
	c.add(
		asm.LoadMem(asm.R1, asm.RFP, frameUID, asm.Word),
		asm.StoreMem(asm.RFP, frameRec+recUID, asm.R1, asm.Word),
	)
	c.unlessSame(asm.R8, claimID, asm.RFP, frameID, asm.DWord, "unsure")
	c.unlessSame(asm.R8, claimID+8, asm.RFP, frameID+8, asm.DWord, "unsure")
	c.add(asm.Ja.Label("socket"))
	c.at("unsure")
	c.add(asm.StoreImm(asm.RFP, frameRec+recSure, 0, asm.Word), asm.Ja.Label("socket"))
	c.at("connector")
	c.copy(asm.RFP, frameRec+recID, asm.R8, claimID, 2)
	c.add(
		asm.LoadMem(asm.R1, asm.R8, claimUID, asm.Word),
		asm.StoreMem(asm.RFP, frameRec+recUID, asm.R1, asm.Word),
	)
	c.at("socket")
	c.copy(asm.RFP, frameRec+recCookie, asm.R8, claimCookie, 2)
	c.copy(asm.RFP, frameRec+recClaimer, asm.R8, claimID, 2)
}

// read copies bytes of the packet R6 to the head; R0 is 0 if they were there.
func (c *code) read(from int32, count int32) {
	c.add(asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, from))
	c.frame(asm.R3, frameHead)
	c.add(asm.Mov.Imm(asm.R4, count), asm.FnSkbLoadBytes.Call(), asm.JNE.Imm(asm.R0, 0, "allow"))
}

// key writes the flow of the packet R6 into the frame.
func (h *hooks) key(c *code) {
	c.zero(asm.RFP, frameKey, keySize/8)
	c.add(
		asm.LoadMem(asm.R1, asm.R8, claimHere, asm.Word),
		asm.StoreMem(asm.RFP, frameKey+keyHere, asm.R1, asm.Byte),
	)
	c.read(0, headerV4)
	c.add(
		asm.LoadMem(asm.R1, asm.RFP, frameHead, asm.Byte),
		asm.Mov.Reg(asm.R7, asm.R1),
		asm.RSh.Imm(asm.R1, 4),
		asm.JEq.Imm(asm.R1, 6, "v6"),
		asm.JNE.Imm(asm.R1, 4, "allow"),
		asm.And.Imm(asm.R7, 15),
		asm.LSh.Imm(asm.R7, 2),
		asm.LoadMem(asm.R1, asm.RFP, frameHead+6, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.And.Imm(asm.R1, 0x1fff),
		asm.JNE.Imm(asm.R1, 0, "allow"), // not the first fragment
		asm.LoadMem(asm.R9, asm.RFP, frameHead+9, asm.Byte),
		asm.StoreImm(asm.RFP, frameKey+keyLocal+10, 0xffff, asm.Half),
		asm.StoreImm(asm.RFP, frameKey+keyRemote+10, 0xffff, asm.Half),
		asm.LoadMem(asm.R1, asm.RFP, frameHead+12, asm.Word),
		asm.StoreMem(asm.RFP, frameKey+keyLocal+12, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.RFP, frameHead+16, asm.Word),
		asm.StoreMem(asm.RFP, frameKey+keyRemote+12, asm.R1, asm.Word),
		asm.Ja.Label("ports"),
	)
	c.at("v6")
	c.read(0, headerV6)
	c.copy(asm.RFP, frameKey+keyLocal, asm.RFP, frameHead+8, 4)
	c.add(
		asm.LoadMem(asm.R9, asm.RFP, frameHead+6, asm.Byte),
		asm.Mov.Imm(asm.R7, headerV6),
	)
	c.at("ports")
	h.ports(c)
}

// ports completes the key: R9 is the protocol, R7 where its header begins.
func (h *hooks) ports(c *code) {
	c.add(
		asm.StoreMem(asm.RFP, frameKey+keyProto, asm.R9, asm.Byte),
		asm.JEq.Imm(asm.R9, protoTCP, "two"),
		asm.JEq.Imm(asm.R9, protoUDP, "two"),
		asm.JEq.Imm(asm.R9, protoICMP, "echo"),
		asm.JEq.Imm(asm.R9, protoICMPv6, "echo"),
		asm.Ja.Label("keyed"), // no ports
	)
	head := func() {
		c.add(asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Reg(asm.R2, asm.R7))
		c.frame(asm.R3, frameHead)
		c.add(asm.Mov.Imm(asm.R4, 8), asm.FnSkbLoadBytes.Call(), asm.JNE.Imm(asm.R0, 0, "allow"))
	}
	c.at("two")
	head()
	c.add(
		asm.LoadMem(asm.R1, asm.RFP, frameHead, asm.Half),
		asm.StoreMem(asm.RFP, frameKey+keyLocalPort, asm.R1, asm.Half),
		asm.LoadMem(asm.R1, asm.RFP, frameHead+2, asm.Half),
		asm.StoreMem(asm.RFP, frameKey+keyRemotePort, asm.R1, asm.Half),
		asm.Ja.Label("keyed"),
	)
	c.at("echo")
	head()
	c.add(
		asm.LoadMem(asm.R1, asm.RFP, frameHead, asm.Byte),
		asm.JEq.Imm(asm.R1, 8, "request"),
		asm.JNE.Imm(asm.R1, 128, "allow"),
	)
	c.at("request")
	c.add(
		asm.LoadMem(asm.R1, asm.RFP, frameHead+4, asm.Half),
		asm.StoreMem(asm.RFP, frameKey+keyLocalPort, asm.R1, asm.Half),
	)
	c.at("keyed")
}

// note enters the record under the key, unless it is there.
func (h *hooks) note(c *code) {
	c.zero(asm.RFP, frameRec+recOther, 4)
	c.zero(asm.RFP, frameRec+recMany, 2)
	c.add(
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.RFP, frameRec+recSince, asm.R0, asm.DWord),
		asm.StoreMem(asm.RFP, frameRec+recLast, asm.R0, asm.DWord),
		asm.Mov.Reg(asm.R7, asm.R0),
		// The same flow of the same sender as a moment ago?
		asm.LoadMem(asm.R1, asm.RFP, frameRec+recSure, asm.Word),
		asm.JEq.Imm(asm.R1, 0, "find"),
		asm.LoadMem(asm.R1, asm.R8, claimSeen, asm.DWord),
		asm.Sub.Reg(asm.R0, asm.R1),
		asm.JGT.Imm(asm.R0, hookSlack, "find"),
	)
	for i := range int16(keySize / 8) {
		c.unlessSame(asm.R8, claimKey+8*i, asm.RFP, frameKey+8*i, asm.DWord, "find")
	}
	c.add(asm.Ja.Label("allow"))
	c.at("find")
	h.record(c)
	c.add(
		asm.Mov.Imm(asm.R4, 1), // BPF_NOEXIST: two that come at once do not hide each other
		asm.JEq.Imm(asm.R0, 0, "enter"),
		asm.Mov.Reg(asm.R9, asm.R0),
	)
	c.unlessSender("replace")
	c.add(
		asm.StoreMem(asm.R9, recLast, asm.R7, asm.DWord),
		asm.StoreMem(asm.R9, recMany, asm.R7, asm.DWord),
	)
	c.fence()
	h.mine(c) // else who replaces it has not seen that
	c.copy(asm.R8, claimKey, asm.RFP, frameKey, keySize/8)
	c.add(asm.StoreMem(asm.R8, claimSeen, asm.R7, asm.DWord), asm.Ja.Label("known"))
	c.at("replace")
	h.replace(c)
	c.at("enter")
	h.enter(c)
	h.mine(c)
	c.add(asm.Ja.Label("known")) // the next packet is noted too: from the third on they are many
	c.at("clash")
	c.copy(asm.R9, recOtherCookie, asm.RFP, frameRec+recCookie, 1)
	c.copy(asm.R9, recOtherID, asm.RFP, frameRec+recID, 2)
	c.zero(asm.R9, recOtherMany, 1)
	c.add(asm.StoreMem(asm.R9, recOther, asm.R7, asm.DWord))
}

// replace puts the sender of the frame in the place of the one whose record R9 is. That one may
// note a packet at the same time, in a record that is not the flow's any more: either it finds our
// record after that, or we find its note in the old one, which nobody clears. In between, and if
// the old one serves another flow already, it is open when the other one sent.
func (h *hooks) replace(c *code) {
	c.copy(asm.RFP, frameRec+recOtherCookie, asm.R9, recCookie, 1)
	c.copy(asm.RFP, frameRec+recOtherID, asm.R9, recID, 2)
	c.add(
		asm.LoadImm(asm.R1, otherOpen, asm.DWord),
		asm.StoreMem(asm.RFP, frameRec+recOther, asm.R1, asm.DWord),
		asm.Mov.Reg(asm.R6, asm.R9),
		asm.Mov.Imm(asm.R4, 2), // BPF_EXIST
	)
	h.enter(c)
	h.mine(c)
	c.fence()
	c.copy(asm.R9, recOtherMany, asm.R6, recMany, 1)
	c.add(asm.LoadMem(asm.R3, asm.R6, recLast, asm.DWord))
	c.unlessSame(asm.R6, recCookie, asm.RFP, frameRec+recOtherCookie, asm.DWord, "reused")
	c.unlessSame(asm.R6, recID, asm.RFP, frameRec+recOtherID, asm.DWord, "reused")
	c.unlessSame(asm.R6, recID+8, asm.RFP, frameRec+recOtherID+8, asm.DWord, "reused")
	c.add(asm.Ja.Label("settle"))
	c.at("reused")
	c.add(asm.FnKtimeGetNs.Call(), asm.Mov.Reg(asm.R3, asm.R0))
	c.at("settle")
	c.add(
		asm.LoadImm(asm.R0, otherOpen, asm.DWord),
		atomically(asm.CmpXchg, asm.R9, asm.R3, recOther), // unless it has found our record
		asm.Ja.Label("known"),
	)
}

// enter writes the record of the frame, with the flag in R4.
func (h *hooks) enter(c *code) {
	c.add(asm.LoadMapPtr(asm.R1, h.flows.FD()))
	c.frame(asm.R2, frameKey)
	c.frame(asm.R3, frameRec)
	c.add(asm.FnMapUpdateElem.Call())
}

// mine points R9 at the record, and jumps if it is somebody else's, who was faster or just
// after us.
func (h *hooks) mine(c *code) {
	h.record(c)
	c.add(asm.JEq.Imm(asm.R0, 0, "allow"), asm.Mov.Reg(asm.R9, asm.R0))
	c.unlessSender("clash")
}

// record looks up the record of the key.
func (h *hooks) record(c *code) {
	c.add(asm.LoadMapPtr(asm.R1, h.flows.FD()))
	c.frame(asm.R2, frameKey)
	c.add(asm.FnMapLookupElem.Call())
}

// unlessSender jumps if the record R9 is not that of the frame: another image, user or socket,
// or one that was less sure.
func (c *code) unlessSender(label string) {
	for i := range int16(recSince / 8) {
		c.unlessSame(asm.R9, recID+8*i, asm.RFP, frameRec+recID+8*i, asm.DWord, label)
	}
}

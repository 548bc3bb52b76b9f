package state

// The values that the hooks keep in the kernel. Offsets are named where a hook uses them; the
// Go types are read with the same layout.

// imageID is the layout of ImageID: start, process, exec count.
const (
	idStart = 0
	idPID   = 8
	idExec  = 12
	idSize  = 16
)

// claim is kept with a socket as long as it lives: who last connected it, or addressed a
// datagram through it. The rest is the last flow that was seen, so that a stream of datagrams
// costs one comparison each.
const (
	claimID     = 0
	claimUID    = 16
	claimHere   = 20
	claimCookie = 24
	claimNetNS  = 32
	claimSeen   = 40
	claimKey    = 48
	// By which Permission the socket was given the mark. Generation 0: it was not.
	claimPermit     = claimKey + keySize
	claimGeneration = claimPermit + permitKeySize
	claimTold       = claimGeneration + 8
	claimSize       = claimTold + 8
)

// permitKey is a Permission as the hooks look for it.
type permitKey struct {
	ID            ImageID
	UID           uint32
	Family, Proto uint8
	Port          [2]byte
	Remote        [16]byte
}

const (
	permitID      = 0
	permitUID     = 16
	permitFamily  = 20
	permitProto   = 21
	permitPort    = 22
	permitRemote  = 24
	permitKeySize = 40
)

// permitValue is how long it holds: in one generation, until a time of the monotonic clock.
type permitValue struct{ Generation, Until uint64 }

const (
	permitGeneration = 0
	permitUntil      = 8
	permitValueSize  = 16
)

// The words by which this process speaks to the hooks.
const (
	controlGeneration = 0 // 0: nothing is permitted ahead
	controlArmed      = 1 // it waits for the next connection
	controls          = 2
)

// begunRecord tells of a connection.
type begunRecord struct {
	Permit permitKey
	Cookie uint64
	Told   uint64
	Port   uint64
	Local  [16]byte
}

const (
	begunPermit = 0
	begunCookie = permitKeySize
	begunTold   = begunCookie + 8
	begunPort   = begunTold + 8
	begunLocal  = begunPort + 8
	begunSize   = begunLocal + 16
)

// What was told.
const (
	toldBegun = 1
	toldStale = 2
)

// flowKey names a flow as its packets show it. here tells our own network namespace from all
// others: what happens in those cannot pass for one of ours.
type flowKey struct {
	Proto, Here        uint8
	LocalPort, RemPort [2]byte
	_                  [2]byte
	Local, Remote      [16]byte
}

// Whose key it is.
const (
	elsewhere = 0
	here      = 1
)

const (
	keyProto      = 0
	keyHere       = 1
	keyLocalPort  = 2
	keyRemotePort = 4
	keyLocal      = 8
	keyRemote     = 24
	keySize       = 40
)

// flowRecord is who sent the packets of a flow.
type flowRecord struct {
	ID     ImageID
	UID    uint32
	Sure   uint32
	Cookie uint64
	NetNS  uint64
	Since  uint64 // this sender's first packet, monotonic nanoseconds
	Last   uint64 // its last one; if there were several, up to hookSlack earlier
	Other  uint64 // last packet of another socket or process with this key; 0: never

	OtherCookie uint64 // whose that was
	OtherID     ImageID
	Claimer     ImageID // who connected the socket, or addressed its last datagram
	Many        uint64  // not 0: there was more than one packet, and Last is not exact
	OtherMany   uint64  // the same of Other
}

const (
	recID     = 0
	recUID    = 16
	recSure   = 20
	recCookie = 24
	recNetNS  = 32
	recSince  = 40
	recLast   = 48
	recOther  = 56

	recOtherCookie = 64
	recOtherID     = 72
	recClaimer     = 88
	recMany        = 104
	recOtherMany   = 112
	recSize        = 120

	// otherOpen stands in recOther as long as it is not known when the other one sent last.
	otherOpen = 1 << 62
)

// imageRecord is what is kept of a program image.
type imageRecord struct {
	Ready     uint32
	Parent    uint32
	MountNS   uint64 // this one and the next only serve to be compared with our own
	RootEntry uint64
	_         uint64
	Inode     uint64
	Device    uint32
	ArgsLen   uint32
	Layout    [4]uint64
	CGroup    uint64
	Comm      [16]byte
	PathLen   uint32
	PathDone  uint32
	Path      [pathRoom]byte // names from the binary up to the root, each ended by a zero
	Args      [argsRoom]byte
}

const (
	imgReady     = 0
	imgParent    = 4
	imgMountNS   = 8
	imgRootEntry = 16
	imgInode     = 32
	imgDevice    = 40
	imgArgsLen   = 44
	imgLayout    = 48
	imgCGroup    = 80
	imgComm      = 88
	imgPathLen   = 104
	imgPathDone  = 108
	imgPath      = 112
	imgArgs      = imgPath + pathRoom
	imgSize      = imgArgs + argsRoom
)

const (
	pathLimit = 512 // bytes of a path
	pathRoom  = pathLimit + nameRoom
	nameRoom  = 256 // the longest name, with its zero
	pathDepth = 24  // names and mount points of a path
	argsRoom  = 2048

	hookSlack = 100_000_000 // nanoseconds between two notes about the same flow
)

// The sizes of the tables. All of them are allocated at once, so they are the price of the
// hooks in kernel memory, about 12 MiB, whatever anybody sends.
const (
	// maxFlows: a look-up comes milliseconds after its packet; at 20 000 new flows a second
	// a record lives for more than a second.
	maxFlows = 32 << 10
	// maxPermits is not allocated at once.
	maxPermits = 4 << 10
	// begunRoom is some 3 000 connections that nobody has read of yet. Behind that SYNs are sent again.
	begunRoom = 256 << 10
	// maxImages: programs that sent something lately. One that is lost is read from /proc as
	// long as it lives.
	maxImages = 2 << 10
)

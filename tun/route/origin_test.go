package route

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"gatun/network/packet"
)

func redirectedFlow(local, remote string) packet.Flow {
	return packet.Flow{Proto: packet.UDP, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
}

// entryOf is what the kernel answers: the entry whose first packet was f.
func entryOf(seq uint32, f packet.Flow) []byte {
	b := appendQuestion(nil, seq, packet.Flow{Proto: f.Proto, Local: f.Remote, Remote: f.Local}) // a tuple reads from Remote to Local
	binary.NativeEndian.PutUint16(b[4:], ctNew0)
	binary.NativeEndian.PutUint16(b[ctHeader+2:], ctTupleOriginal|attrNested)
	return b
}

func errorMessage(seq uint32, e syscall.Errno) []byte {
	b := make([]byte, netlinkHeader+4)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], netlinkError)
	binary.NativeEndian.PutUint32(b[8:], seq)
	binary.NativeEndian.PutUint32(b[netlinkHeader:], uint32(-int32(e)))
	return b
}

func TestEntryCodec(t *testing.T) {
	for _, f := range []packet.Flow{
		redirectedFlow("127.0.0.1:40000", "127.0.0.53:53"), redirectedFlow("[2001:db8::1]:40000", "[::1]:53"),
	} {
		if got, ok, err := parseEntry(entryOf(7, f), 7); got != f || !ok || err != nil {
			t.Errorf("%v: %v %v %v", f, got, ok, err)
		}
		if _, ok, err := parseEntry(entryOf(6, f), 7); ok || err != nil {
			t.Errorf("the answer to another question: %v %v", ok, err)
		}
		b := entryOf(7, f)
		for n := range len(b) {
			if _, _, err := parseEntry(b[:n], 7); err == nil {
				t.Errorf("%d of %d bytes were enough", n, len(b))
			}
		}
	}
	if _, ok, err := parseEntry(errorMessage(7, syscall.ENOENT), 7); !ok || !errors.Is(err, errNoEntry) {
		t.Errorf("%v %v", ok, err)
	}
	if _, ok, err := parseEntry(errorMessage(7, syscall.EPERM), 7); !ok || !errors.Is(err, syscall.EPERM) {
		t.Errorf("%v %v", ok, err)
	}
	mixed := entryOf(7, redirectedFlow("127.0.0.1:1", "127.0.0.53:53"))
	binary.NativeEndian.PutUint16(mixed[ctHeader+4+4+2:], 9) // its source has become something unknown
	if _, _, err := parseEntry(mixed, 7); err == nil {
		t.Error("an entry without a whole address was taken")
	}
}

// FuzzEntry: whatever the bytes are, there is no panic, and a flow comes only with both addresses
// of one family.
func FuzzEntry(f *testing.F) {
	f.Add(entryOf(1, redirectedFlow("127.0.0.1:40000", "127.0.0.53:53")))
	f.Add(entryOf(1, redirectedFlow("[::1]:40000", "[::1]:53")))
	f.Add(errorMessage(1, syscall.ENOENT))
	f.Add(bytes.Repeat([]byte{1}, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = parseState(b)
		flow, ok, err := parseEntry(b, 1)
		if ok && err == nil && (!flow.Local.IsValid() || !flow.Remote.IsValid() || flow.Local.Addr().Is4() != flow.Remote.Addr().Is4()) {
			t.Errorf("%v", flow)
		}
	})
}

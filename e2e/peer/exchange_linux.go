package main

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// exchangeOrder is one line of work of "exchange": messages sent over one socket, and how many
// replies to wait for. The messages are hand-made, so they may be as wrong as one likes.
type exchangeOrder struct {
	ID       string   `json:"id"`
	Net      string   `json:"net"` // udp, tcp
	Messages []string `json:"messages"`
	Replies  int      `json:"replies"`
	Pieces   int      `json:"pieces,omitempty"` // tcp: bytes per write, 0: all at once
	Quiet    bool     `json:"quiet,omitempty"`  // no reply is expected: half a second is enough to see none
}

// exchangeReply is what came back, in the order in which it came.
type exchangeReply struct {
	ID      string   `json:"id"`
	Replies []string `json:"replies,omitempty"`
	Error   string   `json:"error,omitempty"`
	MS      float64  `json:"ms"`
}

// exchangeCommand sends DNS messages as given: "exchange FILE ADDR:PORT", where FILE is a JSON
// list of orders. Data is the JSON list of what came back.
func exchangeCommand(args []string) (result, error) {
	at, timeout, naive := 8, 10*time.Second, false
	rest, err := flags("exchange", args, 2, func(fs *flag.FlagSet) {
		fs.IntVar(&at, "at", at, "orders at a time")
		fs.DurationVar(&timeout, "timeout", timeout, "for the replies of one order")
		fs.BoolVar(&naive, "naive", false, "take the first datagram from anybody, as a careless client does, on one socket for all")
	})
	if err != nil {
		return result{}, err
	}
	b, err := os.ReadFile(rest[0])
	if err != nil {
		return result{}, err
	}
	var orders []exchangeOrder
	if err := json.Unmarshal(b, &orders); err != nil {
		return result{}, err
	}
	replies := make([]exchangeReply, len(orders))
	if naive {
		return naiveExchange(orders, rest[1], timeout)
	}
	slots := make(chan struct{}, at)
	var group sync.WaitGroup
	for i, o := range orders {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			begin := time.Now()
			got, err := o.run(rest[1], timeout)
			replies[i] = exchangeReply{ID: o.ID, Replies: got, MS: float64(time.Since(begin).Microseconds()) / 1000}
			if err != nil {
				replies[i].Error, _ = outcome(err)
			}
		})
	}
	group.Wait()
	data, err := json.Marshal(replies)
	return result{Result: "done", Data: string(data)}, err
}

func (o exchangeOrder) run(server string, timeout time.Duration) (replies []string, err error) {
	if o.Quiet {
		timeout = 500 * time.Millisecond
	}
	c, err := net.DialTimeout(o.Net, server, timeout)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(timeout))
	for _, text := range o.Messages {
		m, err := hex.DecodeString(text)
		if err != nil {
			return nil, err
		}
		if err := o.send(c, m); err != nil {
			return nil, err
		}
	}
	for range o.Replies {
		b, err := receive(c, o.Net)
		if err != nil {
			return replies, err
		}
		replies = append(replies, hex.EncodeToString(b))
	}
	return replies, nil
}

func (o exchangeOrder) send(c net.Conn, m []byte) error {
	if o.Net == "tcp" {
		m = append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...)
	}
	step := o.Pieces
	if step == 0 {
		step = max(len(m), 1)
	}
	for {
		n := min(step, len(m))
		if _, err := c.Write(m[:n]); err != nil {
			return err
		}
		if m = m[n:]; len(m) == 0 {
			return nil
		}
	}
}

func receive(c net.Conn, network string) ([]byte, error) {
	b := make([]byte, 65536)
	if network == "udp" {
		n, err := c.Read(b)
		return b[:n], err
	}
	if _, err := io.ReadFull(c, b[:2]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(b))
	_, err := io.ReadFull(c, b[:n])
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return b[:n], err
}

// naiveExchange is the client that the hygiene of gatun's is measured against: one unconnected
// socket for all queries, and the first datagram is the answer, whoever sent it.
func naiveExchange(orders []exchangeOrder, server string, timeout time.Duration) (result, error) {
	to, err := net.ResolveUDPAddr("udp", server)
	if err != nil {
		return result{}, err
	}
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		return result{}, err
	}
	defer c.Close()
	var replies []exchangeReply
	b := make([]byte, 65536)
	for _, o := range orders {
		m, err := hex.DecodeString(o.Messages[0])
		if err != nil {
			return result{}, err
		}
		if _, err := c.WriteTo(m, to); err != nil {
			return result{}, err
		}
		r := exchangeReply{ID: o.ID}
		for len(r.Replies) < o.Replies { // a late one must not be taken for the next one's
			_ = c.SetReadDeadline(time.Now().Add(timeout))
			n, _, err := c.ReadFrom(b)
			if err != nil {
				break
			}
			r.Replies = append(r.Replies, hex.EncodeToString(b[:n]))
		}
		replies = append(replies, r)
	}
	data, err := json.Marshal(replies)
	return result{Result: "done", Data: string(data)}, err
}

package route

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// queueExpr hands a packet to userspace. There is no bypass: without a listener the kernel drops.
func queueExpr(num uint16) expr.Any { return &expr.Queue{Num: num, Total: 1} }

// compatQueueExpr is the same by the xtables target NFQUEUE, revision 1:
// struct xt_NFQ_info_v1 { __u16 queuenum, queues_total } in the machine's byte order.
func compatQueueExpr(num uint16) expr.Any {
	n := nativeBytes(0)
	copy(n, nativeBytes16(num))
	copy(n[2:], nativeBytes16(1))
	info := xt.Unknown(append(n, 0, 0, 0, 0)) // XT_ALIGN
	return &expr.Target{Name: "NFQUEUE", Rev: 1, Info: &info}
}

// queueMode finds out by which statement this kernel queues: it is added and taken away in one
// transaction, so that nobody ever sees it.
func queueMode(n Names) (InboundMode, error) {
	var errs []error
	for _, try := range []struct {
		mode  InboundMode
		queue expr.Any
	}{{InboundQueued, queueExpr(n.Queue)}, {InboundCompat, compatQueueExpr(n.Queue)}} {
		err := tryExpr(n.NftTable+"_probe", try.queue)
		if err == nil {
			return try.mode, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", try.mode, err))
	}
	return InboundFree, fmt.Errorf("the kernel has no queue to userspace: %w", errors.Join(errs...))
}

func tryExpr(table string, e expr.Any) error {
	c, err := openNft()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: table})
	policy := nftables.ChainPolicyAccept
	chain := c.AddChain(&nftables.Chain{Table: t, Name: "probe", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
		Priority: nftables.ChainPriorityRef(priorityInbound), Policy: &policy})
	// Only what can never come is queued.
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: append(protocolIs(unix.IPPROTO_NONE), e)})
	c.DelTable(t)
	return c.Flush()
}

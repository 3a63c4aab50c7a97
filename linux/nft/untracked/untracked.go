// Package untracked keeps connection tracking away from datagrams to an address that this machine answers for itself, so that
// no entry is made, looked up or raced for.
//
// It owns one table by name for each caller and touches no other.
package untracked

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Datagrams leaves UDP datagrams to a port of these addresses, and the answers to them, out of connection tracking. It replaces
// what the table held.
func Datagrams(table string, addrs []netip.Addr, port uint16) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := &nftables.Table{Name: table, Family: nftables.TableFamilyINet}
	c.AddTable(t)
	c.DelTable(t) // in one transaction with what follows: there is always one or the other
	c.AddTable(t)
	for name, hook := range map[string]*nftables.ChainHook{"in": nftables.ChainHookPrerouting, "out": nftables.ChainHookOutput} {
		chain := c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRaw})
		for _, addr := range addrs {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: match(addr, port, true)})
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: match(addr, port, false)})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables table %s: %w", table, err)
	}
	return nil
}

// Delete removes the table, if there is one.
func Delete(table string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("nftables table %s: %w", table, err)
	}
	return nil
}

// match is a rule for datagrams to (or from) an address and port.
func match(addr netip.Addr, port uint16, to bool) []expr.Any {
	family, offset, size := byte(unix.NFPROTO_IPV4), uint32(12), uint32(4)
	if addr.Is6() {
		family, offset, size = unix.NFPROTO_IPV6, 8, 16
	}
	portAt := uint32(0)
	if to {
		offset += size
		portAt = 2
	}
	equal := func(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{family}),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_UDP}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}, equal(addr.AsSlice()),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: portAt, Len: 2}, equal([]byte{byte(port >> 8), byte(port)}),
		&expr.Notrack{},
	}
}

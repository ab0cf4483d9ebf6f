package sockets

import (
	"net"
	"net/netip"
)

// Admission says from which addresses messages are taken.
type Admission struct {
	Networks []netip.Prefix // nil means that Others decides
	Others   bool           // all addresses are admitted; otherwise only loopback addresses
}

// Admits reports whether messages from an address are taken.
func (a *Admission) Admits(peer netip.Addr) bool {
	if a.Networks == nil {
		return a.Others || peer.IsLoopback()
	}
	for _, network := range a.Networks {
		if network.Contains(peer) {
			return true
		}
	}
	return false
}

// addressOf returns the address without its port, as IPv4 if it is one.
func addressOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return plain(tcp.AddrPort().Addr())
	}
	return netip.Addr{}
}

// plain returns an address as IPv4 if it is one, and without a zone.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of linux/netfilter/nf_tables.h and nfnetlink.h that no library has.
const (
	tableOwner   = 1 << 1 // NFT_TABLE_F_OWNER: only the socket that made the table may change it; Linux 5.12
	tablePersist = 1 << 2 // NFT_TABLE_F_PERSIST: it outlives its owner, and another may adopt it; Linux 6.9
	groupNft     = 7      // NFNLGRP_NFTABLES
	// transactionMax is in bytes.
	transactionMax = 32 << 20
	attrTable      = 1 // the table's name, in a message about whatever of it
)

// socket is the one netlink socket by which the table is written. The library cannot say whose a table is, so that is said
// here, by the library's own socket.
type socket struct {
	*nftables.Conn
	raw    *netlink.Conn
	portID uint32 // what the kernel calls the socket
}

func open() (*socket, error) {
	s := &socket{}
	keep := func(c *netlink.Conn) error { s.raw = c; return nil }
	var err error
	if s.Conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(keep)); err != nil {
		return nil, err
	}
	// A transaction is one datagram; a table with ten thousand elements is about a megabyte. It is allocated only while
	// it is sent.
	if err := s.raw.SetWriteBuffer(transactionMax); err != nil {
		return nil, fmt.Errorf("enlarge the send buffer: %w", err)
	}
	rc, err := s.raw.SyscallConn()
	if err != nil {
		return nil, err
	}
	err = rc.Control(func(fd uintptr) {
		if a, err := unix.Getsockname(int(fd)); err == nil {
			if nl, ok := a.(*unix.SockaddrNetlink); ok {
				s.portID = nl.Pid
			}
		}
	})
	return s, err
}

// claim makes the table, or adopts it from an agent that is gone, as the property of this socket: nobody else can
// change it, not by `nft flush ruleset` either. errNoOwner where the kernel cannot do that, or the table was made without.
func (s *socket) claim() error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(TableName + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, tableOwner|tablePersist)},
	})
	if err != nil {
		return err
	}
	message := func(typ netlink.HeaderType, flags netlink.HeaderFlags, family byte, resource uint16, data []byte) netlink.Message {
		fixed := []byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)} // struct nfgenmsg
		return netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request | flags}, Data: append(fixed, data...)}
	}
	_, err = s.raw.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Acknowledge, unix.NFPROTO_INET, 0, attrs),
		message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
	})
	if err == nil {
		_, err = s.raw.Receive()
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("table inet %s belongs to another process: is a second agent running?: %w", TableName, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		return errNoOwner
	}
	return fmt.Errorf("claim table inet %s: %w", TableName, err)
}

var errNoOwner = errors.New("tables cannot be owned")

// listen reports changes of nf_tables until ctx ends: ours is whether others changed our table, or may have.
func (s *socket) listen(ctx context.Context, changed func(ours bool)) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open nf_tables for watching: %w", err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadBuffer(4 << 20) // for a burst; more than the kernel allows is only less
	if err := conn.JoinGroup(groupNft); err != nil {
		return fmt.Errorf("watch nf_tables: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	for changed(true); ; { // what happened before we listened is not known
		msgs, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, syscall.ENOBUFS):
			changed(true)
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil:
			return fmt.Errorf("watch nf_tables: %w", err)
		}
		ours := false
		for _, m := range msgs {
			ours = ours || m.Header.PID != s.portID && aboutUs(m)
		}
		changed(ours)
	}
}

// aboutUs reports whether a notification is about our table.
func aboutUs(m netlink.Message) bool {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 || m.Data[0] != unix.NFPROTO_INET {
		return false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		return true
	}
	for ad.Next() {
		if ad.Type() == attrTable {
			return ad.String() == TableName
		}
	}
	return false
}

package ipam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
	"time"

	"weft/internal/model"
)

// JournalName is the file in the state directory.
const JournalName = "ipam.journal"

// formatVersion is raised when an older program would misread what a newer one wrote.
const formatVersion = 1

// compactAt is the size in bytes below which a journal is not compacted.
const compactAt = 256 << 10

// op is one change. A line of the journal is a batch of them, which holds or falls as one:
//
//	crc32c(hex) sequence [op,op,…]\n
//
// A batch is on disk before the next one is written. So a line that cannot be read is what a crash left if
// nothing valid follows it, and damage otherwise.
type op struct {
	Op string `json:"op"` // "head", "lease", "free" or "rest"
	// head: the first op of a file
	Version int `json:"version,omitempty"`
	// head, lease: where the search for a free address goes on, one of each family
	Cursor []netip.Addr `json:"cursor,omitempty"`
	// lease: the whole endpoint, as it is from here on
	Lease *record `json:"lease,omitempty"`
	// free: the lease of this ID ends and its addresses rest
	ID string `json:"id,omitempty"`
	// rest: addresses without a lease that must not be given
	Rest []rest `json:"rest,omitempty"`
	// free: when, until when the addresses rest, and why
	At    time.Time `json:"at,omitzero"`
	Until time.Time `json:"until,omitzero"`
	Why   string    `json:"why,omitempty"`
}

// rest is an address that nobody has and nobody gets.
type rest struct {
	Addr  netip.Addr `json:"addr"`
	Since time.Time  `json:"since"`
	Until time.Time  `json:"until,omitzero"` // zero: suspected to be in use, see Allocator.Suspect
	Owner string     `json:"owner,omitempty"`
	Pod   podRecord  `json:"pod,omitzero"`
	Boot  string     `json:"boot,omitempty"` // of a suspicion
	Why   string     `json:"why"`
}

// record is a Lease as it is written. It has its own field names so that a renamed field of the model
// does not make yesterday's journal unreadable.
type record struct {
	ID      string       `json:"id"`
	State   State        `json:"state"`
	Since   time.Time    `json:"since"`
	Network string       `json:"network,omitempty"`
	Pod     podRecord    `json:"pod,omitzero"`
	Netns   string       `json:"netns"`
	NetnsID string       `json:"netnsID,omitempty"`
	Boot    string       `json:"boot,omitempty"`
	IfName  string       `json:"ifname"`
	HostIf  string       `json:"hostIf"`
	MAC     model.MAC    `json:"mac"`
	Addrs   []netip.Addr `json:"addrs"`
	Ports   []portRecord `json:"ports,omitempty"`
	Ingress rateRecord   `json:"ingress,omitzero"`
	Egress  rateRecord   `json:"egress,omitzero"`
}

type podRecord struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

type portRecord struct {
	HostIP   netip.Addr `json:"hostIP,omitzero"`
	Protocol string     `json:"protocol"`
	Port     uint16     `json:"port"`
	PodPort  uint16     `json:"podPort"`
}

type rateRecord struct {
	Bits  uint64 `json:"bits"`
	Burst uint64 `json:"burst,omitempty"`
}

func toRecord(l *Lease) *record {
	e := &l.Endpoint
	r := &record{
		ID: e.ID, State: l.State, Since: l.Since, Network: l.Network, Pod: podRecord(e.Pod),
		Netns: e.Netns, NetnsID: l.NetnsID, Boot: l.Boot, IfName: e.IfName, HostIf: e.HostIf, MAC: e.MAC, Addrs: e.Addrs,
		Ingress: rateRecord(e.Ingress), Egress: rateRecord(e.Egress),
	}
	for _, p := range e.HostPorts {
		r.Ports = append(r.Ports, portRecord(p))
	}
	return r
}

func (r *record) lease() *Lease {
	l := &Lease{
		State: r.State, Since: r.Since, Network: r.Network, NetnsID: r.NetnsID, Boot: r.Boot,
		Endpoint: model.Endpoint{
			ID: r.ID, Pod: model.PodRef(r.Pod), Netns: r.Netns, IfName: r.IfName, HostIf: r.HostIf, MAC: r.MAC, Addrs: r.Addrs,
			Ingress: model.Rate(r.Ingress), Egress: model.Rate(r.Egress),
		},
	}
	for _, p := range r.Ports {
		l.Endpoint.HostPorts = append(l.Endpoint.HostPorts, model.HostPort(p))
	}
	return l
}

// CorruptError says that the journal is damaged where no crash of ours can have damaged it.
type CorruptError struct {
	File   string
	Offset int64 // bytes from the start
	Reason string
}

// Error implements error.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("the address journal %s is damaged at byte %d: %s", e.File, e.Offset, e.Reason)
}

var errSum = errors.New("checksum does not match")

// castagnoli is CRC-32C, which processors compute.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// encode appends a batch as one line.
func encode(out []byte, seq uint64, ops []op) ([]byte, error) {
	body := strconv.AppendUint(nil, seq, 10)
	doc, err := json.Marshal(ops)
	if err != nil {
		return nil, fmt.Errorf("encode journal record: %w", err)
	}
	body = append(append(body, ' '), doc...)
	return append(fmt.Appendf(out, "%08x ", checksum(body)), append(body, '\n')...), nil
}

// decode is the inverse of encode for a line without its newline.
func decode(line []byte) (seq uint64, ops []op, err error) {
	sum, body, ok := bytes.Cut(line, []byte{' '})
	number, doc, more := bytes.Cut(body, []byte{' '})
	if !ok || !more || len(sum) != 8 {
		return 0, nil, errors.New("not a record")
	}
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if err != nil {
		return 0, nil, errors.New("not a record")
	}
	if checksum(body) != uint32(want) {
		return 0, nil, errSum
	}
	if seq, err = strconv.ParseUint(string(number), 10, 64); err != nil {
		return 0, nil, err
	}
	return seq, ops, json.Unmarshal(doc, &ops)
}

// journal is the file being written. Its methods are called by one goroutine at a time.
type journal struct {
	fs   FS
	file File   // nil: the file's end is not known to be good, so it must be rewritten first
	seq  uint64 // of the last batch
	size int    // bytes in file
	base int    // bytes that the last rewriting left
}

// full reports whether the next write has to, or should, be a rewriting.
func (j *journal) full() bool {
	return j.file == nil || j.size > compactAt && j.size > 4*j.base
}

// append writes one batch behind the others. After an error none of it counts.
func (j *journal) append(ops []op) error {
	line, err := encode(nil, j.seq+1, ops)
	if err != nil {
		return err
	}
	if _, err = j.file.Write(line); err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		// What is on disk now is anybody's guess, also after a failed fsync: never write behind it.
		j.file.Close()
		j.file = nil
		return fmt.Errorf("append to %s: %w", JournalName, err)
	}
	j.seq++
	j.size += len(line)
	return nil
}

// rewrite replaces the file by one that holds the batches only.
func (j *journal) rewrite(batches [][]op) error {
	var data []byte
	var err error
	seq := j.seq
	for _, ops := range batches {
		seq++
		if data, err = encode(data, seq, ops); err != nil {
			return err
		}
	}
	f, unsure, err := replace(j.fs, JournalName, data)
	if j.file != nil && (err == nil || unsure) {
		j.file.Close()
		j.file = nil
	}
	if err != nil {
		return err
	}
	j.file, j.seq, j.size, j.base = f, seq, len(data), len(data)
	return nil
}

// put writes the batch, or, if whole is not nil, everything in its place. whole includes the batch.
func (j *journal) put(ops []op, whole [][]op) error {
	if whole != nil {
		if err := j.rewrite(whole); err == nil || j.file == nil {
			return err
		}
		// Compaction can wait: the old file is as good as it was.
	}
	return j.append(ops)
}

package rpc

import "time"

// Leg is one leg of a message's way over the bus.
type Leg int

// The legs that faults can strike. Events and views reach their readers over
// ordered consumers that repair themselves, so only storing them can fail.
const (
	LegCall      Leg = iota // a call on its way to the agent
	LegReply                // its reply on the way back
	LegStore                // a cast, event or view entry on its way into the store
	LegStored               // the confirmation that it is stored
	LegDelivery             // a cast on its way to its reader
	LegAck                  // the reader's acknowledgement
	numberOfLegs            // keep last
)

// String names the leg.
func (l Leg) String() string {
	legs := [numberOfLegs]string{"call", "reply", "store", "stored", "delivery", "ack"}
	if l < 0 || l >= numberOfLegs {
		return "unknown"
	}
	return legs[l]
}

// Passage describes one message on one leg, for the function that decides its fate.
type Passage struct {
	Leg      Leg
	Conn     string // the connection that sends it, or for a delivery receives it
	Host     string // of the agent in question; empty for views
	Subject  string // as on the wire
	Request  string // request id of a call or cast, message id of an event
	Sequence uint64 // of a delivery
}

// Fate is what becomes of a message. The zero Fate lets it pass.
type Fate struct {
	Drop      bool          // it is lost; the sender learns nothing
	Duplicate bool          // it arrives twice
	Delay     time.Duration // it arrives later, and so perhaps after its successors
}

// SetFaults installs the judge of every message; nil lets all pass. It is called
// under the bus's lock: it must be quick and must not use the bus.
func (b *Bus) SetFaults(judge func(Passage) Fate) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = judge
}

func (b *Bus) fateLocked(p Passage) Fate {
	if b.faults == nil {
		return Fate{}
	}
	return b.faults(p)
}

func (b *Bus) fate(p Passage) Fate {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fateLocked(p)
}

// carry lets a message travel: now, later, twice or never.
func carry(f Fate, arrive func()) {
	if f.Drop {
		return
	}
	times := 1
	if f.Duplicate {
		times = 2
	}
	for range times {
		if f.Delay > 0 {
			time.AfterFunc(f.Delay, arrive)
		} else {
			arrive()
		}
	}
}

// Package intel holds what is known of the other end of a flow beside its name and address: the
// filter lists it is on, its country and its network.
//
// A Stamp travels in a network.Entity; rules and deciders read it. The package decides nothing
// and imports nothing of ours.
package intel

// Match is one filter list that a name or address is on, with the place where it says so.
type Match struct {
	ID       string // of the list, as rules name it: L:ads
	Category string // TRAC, MAL, DECEP, BAD, UNBREAK, …
	Source   string // file or URL
	Line     int    // from 1; 0 unknown
}

// Stamp is what is known of a domain or an address. It is immutable after it was made. An empty
// field means that the data was asked and says nothing; where nobody asked yet there is no Stamp.
type Stamp struct {
	Lists     []Match
	Country   string // ISO 3166-1 alpha-2, upper case
	Continent string // AF, AN, AS, EU, NA, OC, SA
	ASN       uint32
	ASOwner   string
}

// Package intel knows what there is to know of the other end of a flow beside its name and
// address: the filter lists it is on, its country and the network it belongs to.
//
// cmd makes one Store, hands it the policy's lists and runs it; dns and firewall ask it for a
// Stamp, which travels in a network.Entity and which rules and deciders read. A Stamp is read
// without a lock from a snapshot that is never changed: a list that was updated makes a new one.
//
// Lists come from elsewhere and are not trusted: whatever one contains, it is read within
// limits, it cannot name a whole top-level domain or local network, and one that is broken never
// replaces the last good copy. Status says why.
//
// Beside lists it judges names by themselves: Generated scores whether a program made one, Tunnels
// watches queries for data that names carry. Both are guesses from measured limits.
//
// The package decides nothing, resolves nothing and imports nothing of ours. It dials only
// through the http.Client that it is given, which has to go around the firewall.
package intel

// Match is one filter list that a name or address is on, with the place where it says so.
type Match struct {
	ID       string // of the list, as rules name it: L:ads
	Category string // TRAC, MAL, DECEP, BAD, UNBREAK, …
	Source   string // file or URL, without a password or query
	Line     int    // from 1; 0 unknown

	Name string // what the list has there: the name itself, one above it, or a prefix
	// Above tells that the list has only a name above the one that was asked, and does not say
	// itself that it means the names below.
	Above bool
	Alias bool // it is not the name itself that is on the list, but one that it is an alias of
}

// Stamp is what is known of a domain or an address. It is immutable after it was made. An empty
// field means that the data was asked and says nothing; where nobody asked yet there is no Stamp.
type Stamp struct {
	Lists     []Match
	Country   string // ISO 3166-1 alpha-2, upper case
	Continent string // AF, AN, AS, EU, NA, OC, SA
	ASN       uint32
	ASOwner   string

	// MoreByAddr tells that no address was asked about, and that some list has addresses: one that
	// the name leads to may be on it.
	MoreByAddr bool
}

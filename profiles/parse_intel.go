package profiles

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// isoCountries are the codes of ISO 3166-1 alpha-2, and XK: Kosovo has no code there, and all
// country data use this one.
const isoCountries = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ " +
	"CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR " +
	"GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP " +
	"KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ " +
	"NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW " +
	"SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ " +
	"UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW"

// isoContinents are the codes that country data use for continents.
const isoContinents = "AF AN AS EU NA OC SA"

// meantCountries are codes that people write and ISO does not have, or does not have any more.
const meantCountries = "AN=C:AN CS=RS DD=DE EL=GR EN=GB EU=C:EU JA=JP OC=C:OC SF=FI SU=RU TP=TL UK=GB YU=RS ZR=CD"

func isCountry(word string) bool {
	return len(word) == 2 && isUpper(word) && strings.Contains(isoCountries, word)
}

// meantCountry returns what was probably meant by two letters, "" if nobody knows.
func meantCountry(upper string) string {
	if isCountry(upper) {
		return upper
	}
	for pair := range strings.FieldsSeq(meantCountries) {
		if code, meant, _ := strings.Cut(pair, "="); code == upper {
			return meant
		}
	}
	return ""
}

// country reads two upper-case letters: a domain has more labels, or is not in upper case.
func (p *parser) country(word string, start int) (entity, bool, *RuleError) {
	switch {
	case isCountry(word):
		return entity{kind: countryEntity, name: word}, true, nil
	case len(word) == 2 && isUpper(word):
		return entity{}, false, p.at(start, fmt.Sprintf("there is no country %s in ISO 3166-1", word), meantCountry(word))
	default:
		return entity{}, false, nil
	}
}

func (p *parser) continent(word string, start int) (entity, bool, *RuleError) {
	code, ok := strings.CutPrefix(word, "C:")
	if !ok {
		return entity{}, false, nil
	}
	known := strings.Fields(isoContinents)
	switch upper := strings.ToUpper(code); {
	case slices.Contains(known, code):
		return entity{kind: continentEntity, name: code}, true, nil
	case slices.Contains(known, upper):
		return entity{}, false, p.at(start, fmt.Sprintf("%q is a continent if it is in upper case", word), "C:"+upper)
	case isCountry(code):
		return entity{}, false, p.at(start+2, fmt.Sprintf("%s is a country; want a continent: AF, AN, AS, EU, NA, OC or SA", code), code)
	default:
		return entity{}, false, p.at(start+2, fmt.Sprintf("want a continent: AF, AN, AS, EU, NA, OC or SA, got %q", code), meantContinent(code))
	}
}

func meantContinent(name string) string {
	for pair := range strings.FieldsSeq("africa=AF antarctica=AN asia=AS europe=EU northamerica=NA oceania=OC australia=OC southamerica=SA") {
		if long, code, _ := strings.Cut(pair, "="); strings.EqualFold(long, name) {
			return "C:" + code
		}
	}
	return ""
}

func (p *parser) network(word string, start int) (entity, bool, *RuleError) {
	digits, ok := strings.CutPrefix(word, "AS")
	if !ok || !isDigits(digits) {
		return entity{}, false, nil
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || n == 0 {
		return entity{}, false, p.at(start, fmt.Sprintf("want an ASN from AS1 to AS4294967295, got %s", word), "")
	}
	return entity{kind: asnEntity, asn: uint32(n)}, true, nil
}

// maxListID bounds the name of a filter list.
const maxListID = 64

// lists reads "L:" and names of lists or of their categories.
func (p *parser) lists(word string, start int) (entity, bool, *RuleError) {
	names, ok := strings.CutPrefix(word, "L:")
	if !ok {
		return entity{}, false, nil
	}
	e := entity{kind: listEntity}
	start += 2
	for id := range strings.SplitSeq(names, ",") {
		if rest, twice := strings.CutPrefix(id, "L:"); twice {
			return entity{}, false, p.at(start, "L: stands once, before the first list", rest)
		}
		if message := checkListID(id); message != "" {
			return entity{}, false, p.at(start, fmt.Sprintf("%q is not the name of a list: %s", id, message), "")
		}
		if !slices.Contains(e.ids, id) {
			e.ids = append(e.ids, id)
		}
		start += len(id) + 1
	}
	return e, true, nil
}

func checkListID(id string) string {
	switch {
	case id == "":
		return "it is empty"
	case len(id) > maxListID:
		return fmt.Sprintf("it has more than %d characters", maxListID)
	}
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return fmt.Sprintf("it has %q", c)
		}
	}
	return ""
}

// splitList refuses {L:ads,mal}: in a set the comma ends the list, and mal would silently be
// the name of a host.
func (p *parser) splitList(before []entity, e *entity, start int) *RuleError {
	if len(before) == 0 {
		return nil
	}
	last := &before[len(before)-1]
	for last.kind == notEntity {
		last = &last.of[0]
	}
	if last.kind != listEntity || e.kind != exactName || strings.Contains(e.name, ".") {
		return nil
	}
	return p.at(start, "in a set each list has its own L:", "L:"+p.text[start:p.pos])
}

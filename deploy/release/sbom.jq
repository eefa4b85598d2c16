# What `cargo metadata` says of the programs, as CycloneDX: each package that is compiled into one of them or builds it.
def key: "\(.name)@\(.version)";
def ref: "pkg:cargo/\(.name)@\(.version)";
($sums[0]) as $checksums
| ($roots | split(" ")) as $roots
| (.packages | map({ (.id): . }) | add) as $packages
| (.resolve.nodes | map({ (.id): [.deps[] | select(any(.dep_kinds[]; .kind != "dev")) | .pkg] }) | add) as $uses
| [.packages[] | select(.source == null and (.name | IN($roots[]))) | .id] as $programs
| def reached: . as $known | ($known + [$known[] | $uses[.][]] | unique) as $more
    | if $more == $known then $known else $more | reached end;
  ($programs | unique | reached | map($packages[.]) | sort_by(key)) as $parts
| ($packages[$programs[0]].version) as $version
| {
    bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
    metadata: {
        timestamp: $time,
        component: { type: "application", "bom-ref": "berth", name: "berth", version: $version, licenses: [{ expression: "Apache-2.0" }] }
    },
    components: [$parts[] | {
        type: "library", "bom-ref": ref, name, version, purl: ref,
        licenses: (if .license then [{ expression: (.license | gsub(" ?/ ?"; " OR ")) }] else [] end)
    } + (if $checksums[key] then { hashes: [{ alg: "SHA-256", content: $checksums[key] }] } else {} end)],
    dependencies: ([{ ref: "berth", dependsOn: [$programs[] | $packages[.] | ref] | sort }]
        + [$parts[] | { ref: ref, dependsOn: [$uses[.id][] | $packages[.] | ref] | sort }])
}

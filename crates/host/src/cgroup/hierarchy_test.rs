//! Files as the kernel shows them.

use super::*;

fn version_2(own: &str) -> Hierarchy {
    Hierarchy { own: own.into(), version_1: None, aside: false }
}

fn version_1(own: &str, controllers: &[&str]) -> Hierarchy {
    let controllers = controllers.iter().map(|&name| name.to_owned()).collect();
    Hierarchy { own: own.into(), version_1: Some(controllers), aside: false }
}

#[test]
fn a_unit_of_a_server_with_version_2_only() {
    let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
    let found = parse(mounts, "0::/system.slice/cohort.service\n");
    assert_eq!(found, [version_2("/sys/fs/cgroup/system.slice/cohort.service")]);
    let aside = parse(mounts, "0::/system.slice/cohort.service/cohort-self\n");
    let above = version_2("/sys/fs/cgroup/system.slice/cohort.service");
    assert_eq!(aside, [Hierarchy { aside: true, ..above }], "put aside, it works above");
}

#[test]
fn version_2_comes_before_version_1_and_pids_before_the_rest() {
    let mounts = "32 31 0:29 / /cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                  35 31 0:32 / /cg/memory rw,relatime - cgroup cgroup rw,memory\n\
                  36 31 0:33 / /cg/freezer rw,relatime - cgroup cgroup rw,freezer\n\
                  39 31 0:36 / /cg/pids rw,relatime - cgroup cgroup rw,pids\n\
                  40 31 0:36 / /elsewhere/pids rw,relatime - cgroup cgroup rw,pids\n";
    let cgroups = "9:name=systemd:/\n8:pids:/\n4:memory:/a/b\n2:cpu,cpuacct:/\n";
    let old = [
        version_1("/cg/pids", &["pids"]),
        version_1("/cg/cpu,cpuacct", &["cpu", "cpuacct"]),
        version_1("/cg/memory/a/b", &["memory"]),
    ];
    assert_eq!(parse(mounts, cgroups), old);
    let both = format!("{mounts}41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw\n");
    let found = parse(&both, &format!("{cgroups}0::/\n"));
    assert_eq!(found[0], version_2("/cg/unified"));
    assert_eq!(found[1..], old);
}

#[test]
fn a_cgroup_outside_of_what_is_mounted_is_nobodys() {
    let mounts = "44 33 0:39 /docker/1 /sys/fs/cgroup rw shared:9 - cgroup2 cgroup rw\n";
    assert_eq!(parse(mounts, "0::/docker/1\n"), [version_2("/sys/fs/cgroup")]);
    assert_eq!(parse(mounts, "0::/docker/2\n"), []);
    assert_eq!(parse(mounts, "0::/docker/1/../../x\n"), []);
    assert_eq!(parse("nothing", "nothing"), []);
}

/// The kernel's part is played by plain files, which keep what was written to them last.
#[test]
fn version_2_hands_down_what_is_there_if_no_process_is_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().to_owned();
    fs::write(own.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
    let file = own.join(HANDED_DOWN);
    fs::write(&file, "memory\n").unwrap();
    let beside = version_2(own.to_str().unwrap());
    assert_eq!(beside.controllers(), [Controller::Memory], "a unit that can be restarted");
    assert_eq!(fs::read_to_string(&file).unwrap(), "memory\n");
    let hierarchy = Hierarchy { aside: true, ..beside };
    assert_eq!(hierarchy.controllers(), Controller::ALL);
    assert_eq!(fs::read_to_string(&file).unwrap(), "+cpu +pids");
    fs::write(&file, "cpu memory pids\n").unwrap();
    assert_eq!(hierarchy.controllers(), Controller::ALL);
    assert_eq!(fs::read_to_string(&file).unwrap(), "cpu memory pids\n", "nothing was missing");
    fs::write(own.join("cgroup.controllers"), "\n").unwrap();
    assert_eq!(hierarchy.controllers(), []);
}

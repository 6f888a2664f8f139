//! The rights of root that a bus may have been started with (capabilities(7)).

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities,
};

/// Gives all up, and says which there were, by name.
///
/// # Errors
///
/// What the system says.
pub fn drop_all() -> Result<Vec<String>, String> {
    let had = capabilities(None).map_err(|error| format!("cannot read them: {error}"))?;
    forget_bounds();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    // With the permitted ones go the ambient ones.
    set_capabilities(None, none).map_err(|error| format!("cannot drop them: {error}"))?;
    let names = had.effective.iter_names();
    Ok(names.map(|(name, _)| format!("CAP_{name}")).collect())
}

/// Takes them from what a program that is run could be given. That takes a capability of its own;
/// without it, that there are no new privileges does the same.
fn forget_bounds() {
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if remove_capability_from_bounding_set(one).is_err() {
            // The kernel knows no more of them, or does not let this one go.
            break;
        }
    }
}

//! cuDNN's descriptors: objects with attributes, which are set and then made final.

use std::ffi::{c_int, c_void};
use std::ptr;

use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Attribute, cudnnBackendAttributeType_t as Type,
    cudnnBackendDescriptorType_t as Kind, cudnnBackendHeurMode_t as Heuristic, cudnnDataType_t as Number,
    cudnnPointwiseMode_t as Pointwise, cudnnReduceTensorOp_t as Reduction,
};

use super::library::{Api, Handle, Raw, Refusal};

/// A descriptor, destroyed when it is dropped.
pub struct Descriptor {
    api: &'static Api,
    raw: Raw,
    kind: Kind,
}

/// A value that an attribute can have, as cuDNN reads it from memory.
pub trait Value: Copy {
    /// What cuDNN calls its type.
    const TYPE: Type;
}

macro_rules! values {
    ($($of:ty => $kind:ident),* $(,)?) => { $(impl Value for $of { const TYPE: Type = Type::$kind; })* };
}

/// Another descriptor.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Reference(Raw);

/// An address on the device, or of a number on the host.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Pointer(*const c_void);

impl Pointer {
    /// To an address on the device.
    pub fn to(address: u64) -> Self {
        Self(address as *const c_void)
    }

    /// To a number on the host.
    pub fn of(number: &f32) -> Self {
        Self(ptr::from_ref(number).cast())
    }
}

/// A handle.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Of(pub Handle);

values! {
    i64 => CUDNN_TYPE_INT64,
    f32 => CUDNN_TYPE_FLOAT,
    bool => CUDNN_TYPE_BOOLEAN,
    Number => CUDNN_TYPE_DATA_TYPE,
    Pointwise => CUDNN_TYPE_POINTWISE_MODE,
    Reduction => CUDNN_TYPE_REDUCTION_OPERATOR_TYPE,
    Heuristic => CUDNN_TYPE_HEUR_MODE,
    Reference => CUDNN_TYPE_BACKEND_DESCRIPTOR,
    Pointer => CUDNN_TYPE_VOID_PTR,
    Of => CUDNN_TYPE_HANDLE,
}

impl Descriptor {
    /// One without attributes.
    pub fn new(api: &'static Api, kind: Kind) -> Result<Self, Refusal> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` outlives the call.
        let made = unsafe { (api.create_descriptor)(kind as c_int, &mut raw) };
        api.check(&format!("making {kind:?}"), made)?;
        Ok(Self { api, raw, kind })
    }

    /// Sets an attribute to some values, which are copied.
    pub fn set_all<V: Value>(&self, attribute: Attribute, values: &[V]) -> Result<(), Refusal> {
        let (count, from) = (values.len() as i64, values.as_ptr().cast());
        // SAFETY: the descriptor is alive; there are as many values as it says, of the type that it says.
        let set = unsafe { (self.api.set_attribute)(self.raw, attribute as c_int, V::TYPE as c_int, count, from) };
        self.api.check(&format!("setting {attribute:?}"), set)
    }

    /// Sets an attribute to one value.
    pub fn set<V: Value>(&self, attribute: Attribute, value: V) -> Result<(), Refusal> {
        self.set_all(attribute, &[value])
    }

    /// Makes it final.
    pub fn finalize(self) -> Result<Self, Refusal> {
        // SAFETY: the descriptor is alive.
        let done = unsafe { (self.api.finalize)(self.raw) };
        self.api.check(&format!("finishing {:?}", self.kind), done)?;
        Ok(self)
    }

    /// A number that a final descriptor has.
    pub fn number(&self, attribute: Attribute) -> Result<i64, Refusal> {
        let (mut value, mut count) = (0i64, 0i64);
        let (of, to) = (i64::TYPE as c_int, (&raw mut value).cast());
        // SAFETY: there is room for the one number that is asked for.
        let got = unsafe { (self.api.get_attribute)(self.raw, attribute as c_int, of, 1, &mut count, to) };
        self.api.check(&format!("asking for {attribute:?}"), got)?;
        Ok(value)
    }

    /// The descriptors that a final one has: at most `most`.
    pub fn descriptors(&self, attribute: Attribute, kind: Kind, most: usize) -> Result<Vec<Self>, Refusal> {
        let of = Reference::TYPE as c_int;
        let mut found = (0..most).map(|_| Self::new(self.api, kind)).collect::<Result<Vec<_>, _>>()?;
        let mut raw: Vec<Reference> = found.iter().map(Self::reference).collect();
        let mut count = 0i64;
        // SAFETY: cuDNN fills descriptors that were made for it; there are as many as it is told.
        let got = unsafe {
            let to = raw.as_mut_ptr().cast();
            (self.api.get_attribute)(self.raw, attribute as c_int, of, most as i64, &mut count, to)
        };
        self.api.check(&format!("asking for {attribute:?}"), got)?;
        found.truncate(usize::try_from(count).unwrap_or_default());
        Ok(found)
    }

    /// For attributes of others. Whoever sets one sees to it that this one lives as long.
    pub fn reference(&self) -> Reference {
        Reference(self.raw)
    }

    /// cuDNN's name for it.
    pub fn raw(&self) -> Raw {
        self.raw
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { (self.api.destroy_descriptor)(self.raw) };
    }
}
